//! The store that simulations use must be a store.

use std::sync::Arc;

use mysql_pitr::store::SharedStore;

use crate::support::memory_store::MemoryStore;

struct Fixture(MemoryStore);

impl Fixture {
    fn store(&self) -> SharedStore {
        Arc::new(self.0.clone())
    }
}

crate::conformance!(async { Fixture(MemoryStore::default()) });
