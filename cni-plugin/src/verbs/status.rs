//! STATUS: whether an ADD would work, without an attempt.

use crate::config::NetworkConfig;
use crate::datapath::Datapath;
use crate::ipam::allocate::free_addresses;
use crate::ipam::{IpamError, Store};
use crate::spec::{CniError, Code};

/// Reports the reason why ADD would fail. Mistakes in the configuration keep their own codes.
pub fn status(config: &NetworkConfig) -> Result<(), CniError> {
    let sets = config.range_sets()?;
    config.mtu()?;
    config.routes()?;
    config.refuses_duplicates()?;
    Datapath::open(&config.bpf_root).map_err(|error| not_available(&error.into()))?;
    // Before the first ADD there is no directory, and all addresses are free.
    let Some(store) = Store::existing(&config.data_dir) else {
        return Ok(());
    };
    for (index, set) in sets.iter().enumerate() {
        let free = free_addresses(&store, set, 1).map_err(|error| not_available(&error.into()))?;
        if free == 0 {
            let dir = store.dir().to_path_buf();
            return Err(not_available(&IpamError::Exhausted { set: index, dir }.into()));
        }
    }
    Ok(())
}

fn not_available(error: &CniError) -> CniError {
    CniError::new(Code::NotAvailable, "pods cannot be added").with_details(error.to_string())
}
