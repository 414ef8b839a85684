//! Bad input in a running agent: the agent reports each error with its object, and goes on serving the rest.
//!
//! By file: invalid objects ([`objects`]), and objects that cannot be decoded ([`undecodable`]), from an API
//! server that follows a script ([`api_server`]). Then incomplete surroundings ([`surroundings`]), files of
//! kube-proxy with fields that are gone ([`kube_proxy_file`]), and large numbers of everything ([`sizes`]).

mod api_server;
mod fixture;
mod kube_proxy_file;
mod objects;
mod sizes;
mod surroundings;
mod undecodable;
