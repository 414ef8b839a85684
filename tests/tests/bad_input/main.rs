//! Bad input in a running agent: each is told of, with what and where it is, and the rest stays served.
//!
//! By file: objects that make no sense ([`objects`]), surroundings that lack something ([`surroundings`]), much of
//! everything ([`sizes`]).

mod objects;
mod shop;
mod sizes;
mod surroundings;
