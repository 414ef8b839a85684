//! Parts of the data plane are removed while pods run, as upgrades, administrators and accidents do it. The
//! agent restores each part within seconds, or `millrace status` is not ready and names it. Meanwhile no pod
//! sends with a foreign source.

mod altered;
mod forger;
mod leases;
mod limits;
mod many_pods;
mod named;
mod pins;
mod socket;
mod surroundings;
mod topology;
