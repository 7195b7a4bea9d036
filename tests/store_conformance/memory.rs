//! The stores that simulations use must be stores.

use std::sync::Arc;

use mysql_pitr::store::SharedStore;

use crate::support::{faulty_store::FaultyStore, memory_store::MemoryStore};

/// Without a fault, what fails by seed is what it stands for.
struct Fixture(FaultyStore);

impl Fixture {
    fn store(&self) -> SharedStore {
        Arc::new(self.0.clone())
    }
}

crate::store_conformance::conformance!(async { Fixture(FaultyStore::new(Arc::new(MemoryStore::default()), 1)) });
