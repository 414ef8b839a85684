//! Attackers and noisy neighbours: pods, tenants and hosts on the link must not disturb others.
//!
//! Each test forges frames or floods tables in a world of its own, and ends with an honest packet on the same
//! path. So a packet that did not arrive by then was refused, and is not merely late.

mod closes;
mod dead_entries;
mod echo;
mod first_fragments;
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
mod topology;
mod tunnel;
mod tunnel_addresses;
mod tunnel_ends;
mod tunnel_topology;
