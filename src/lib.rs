//! mysql-pitr ships MySQL binlogs and snapshots to an object store, and recovers a server at any chosen microsecond.
//!
//! Eight floors, lower ones know nothing of higher ones: `support`; `store`, `binlog`, `orchestrator` and `metrics` on it; `mysql`
//! and `archive`; `ship`, `replica`, `source` and `volume`; `snapshot`, `inspect` and `retention`; `recover`; `agent`; `cli`. Only `agent` and
//! `cli` read the configuration and construct stores and clients; everyone else is handed what it needs.

pub mod agent;
pub mod archive;
pub mod binlog;
pub mod cli;
pub mod config;
pub mod inspect;
pub mod metrics;
pub mod mysql;
pub mod orchestrator;
pub mod recover;
pub mod replica;
pub mod retention;
pub mod ship;
pub mod snapshot;
pub mod source;
pub mod store;
pub mod support;
pub mod volume;
