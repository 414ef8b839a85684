//! Attackers and noisy neighbours: what pods, tenants and hosts on the link may do to others, which is
//! nothing.
//!
//! Each test forges frames or floods tables in a world of its own, and ends with an honest packet by the
//! same way. So what did not arrive was refused, and did not only come late.

mod closes;
mod dead_entries;
mod floods;
mod fuzz;
mod host_ports;
mod icmp;
mod idle_connections;
mod links;
mod local_sockets;
mod loops;
mod neighbours;
mod offload;
mod redirects;
mod resets;
mod source_ports;
mod sources;
mod tags;
mod tags_at_uplinks;
mod town;
mod tunnel;
mod tunnel_ends;
mod tunnel_town;
