//! mysql-pitr ships MySQL binlogs and snapshots to an object store, and recovers a server at any chosen microsecond.
//!
//! Eight floors, lower ones know nothing of higher ones: `support`, `store` and `binlog` at the ground, and `metrics`; `mysql` and
//! `archive` on them; `ship`, `source` and `volume`; `snapshot` and `inspect`; `recover`; `agent`; `cli`. Only `agent` and
//! `cli` read the configuration and construct stores and clients; everyone else is handed what it needs.

pub mod agent;
pub mod archive;
pub mod binlog;
pub mod cli;
pub mod config;
pub mod inspect;
pub mod metrics;
pub mod mysql;
pub mod recover;
pub mod ship;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod support;
pub mod volume;
