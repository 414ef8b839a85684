//! The shared values of all stored objects: their strings, and the placements of their endpoints.

use compact_str::CompactString;

use super::interner::{Interner, Symbol};

/// The place of an endpoint, and the clients that should prefer it. All endpoints of a node in one service
/// share one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Placement {
    /// The node, if the slice names one.
    pub node: Option<Symbol>,
    /// The zone, if the slice names one.
    pub zone: Option<Symbol>,
    /// Zones whose clients should use the endpoint.
    pub for_zones: Box<[Symbol]>,
    /// Nodes whose clients should use the endpoint.
    pub for_nodes: Box<[Symbol]>,
}

impl Placement {
    fn symbols(&self) -> impl Iterator<Item = Symbol> {
        let hints = self.for_zones.iter().chain(&*self.for_nodes).copied();
        self.node.into_iter().chain(self.zone).chain(hints)
    }
}

/// The interners. Code that makes an object acquires its uses here, and code that drops the object releases
/// them.
#[derive(Debug, Default)]
pub struct Names {
    strings: Interner<CompactString>,
    placements: Interner<Placement>,
    nowhere: Placement,
}

impl Names {
    /// The text of a symbol of a stored object; empty for any other symbol.
    pub fn text(&self, symbol: Symbol) -> &str {
        self.strings.get(symbol).map_or("", CompactString::as_str)
    }

    /// The placement of a symbol of a stored endpoint; an empty one for any other symbol.
    pub fn placement(&self, symbol: Symbol) -> &Placement {
        self.placements.get(symbol).unwrap_or(&self.nowhere)
    }

    /// The symbol of `text`, if a stored object holds it.
    pub fn find(&self, text: &str) -> Option<Symbol> {
        self.strings.find(text)
    }

    /// Adds a use of `text`.
    pub fn intern(&mut self, text: &str) -> Symbol {
        self.strings.intern(text.into()).0
    }

    /// Adds a use of `placement`, in exchange for one use of each symbol in it.
    pub fn intern_placement(&mut self, placement: Placement) -> Symbol {
        let (symbol, new) = self.placements.intern(placement);
        if !new {
            // The stored copy holds its own uses already.
            let Self {
                strings, placements, ..
            } = self;
            for text in placements.get(symbol).into_iter().flat_map(Placement::symbols) {
                strings.release(text);
            }
        }
        symbol
    }

    /// Releases a use of a text.
    pub fn release(&mut self, symbol: Symbol) {
        self.strings.release(symbol);
    }

    /// Releases a use of a placement.
    pub fn release_placement(&mut self, symbol: Symbol) {
        if let Some(placement) = self.placements.release(symbol) {
            for text in placement.symbols() {
                self.strings.release(text);
            }
        }
    }

    /// The number of stored values, for tests of leaks.
    pub fn len(&self) -> usize {
        self.strings.len() + self.placements.len()
    }

    /// Whether no value is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
