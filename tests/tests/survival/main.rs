//! What the data plane needs is taken away while pods run, as upgrades, administrators and accidents do it: it is made again
//! within seconds, or `millrace status` is not ready and names it; and no pod sends in another's name meanwhile.

mod altered;
mod leases;
mod limits;
mod many_pods;
mod named;
mod pins;
mod socket;
mod surroundings;
mod town;
