//! Bad input in a running agent: each is told of, with what and where it is, and the rest stays served.
//!
//! By file: objects that make no sense ([`objects`]), such as cannot be decoded ([`undecodable`], of an API
//! server that follows a script: [`api_server`]), surroundings that lack something ([`surroundings`]), much
//! of everything ([`sizes`]).

mod api_server;
mod objects;
mod shop;
mod sizes;
mod surroundings;
mod undecodable;
