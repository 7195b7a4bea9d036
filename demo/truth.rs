//! The truth, kept outside MySQL: what every acknowledged transaction did, by its GTID.
//!
//! Nothing in here was read back from a server or from the archive, except the GTID that the server named when it
//! acknowledged the commit. A server's GTIDs are given in the order of its binlog, so the state at any point is what all
//! transactions with smaller numbers left behind.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
};

use mysql_pitr::binlog::gtid::{Gtid, GtidSet};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

/// A row's columns in the table's order, each as SELECT prints it; None is NULL.
pub type Row = Vec<Option<String>>;
/// A table's rows by their `id`.
pub type Rows = BTreeMap<u64, Row>;

/// What a statement does to one row.
#[derive(Debug, Clone)]
pub struct Change {
    pub table: &'static str,
    pub id: u64,
    /// The row afterwards; None where it was deleted.
    pub row: Option<Row>,
}

/// Every acknowledged transaction. Shared by all who write.
pub struct Truth {
    history: Mutex<BTreeMap<Gtid, Vec<Change>>>,
    transactions: watch::Sender<u64>,
}

/// What a server must hold at some point of the history.
#[derive(Debug, Default)]
pub struct State {
    pub gtids: GtidSet,
    pub tables: BTreeMap<&'static str, Rows>,
}

impl Truth {
    pub fn new() -> Truth {
        Truth {
            history: Mutex::default(),
            transactions: watch::Sender::new(0),
        }
    }

    pub fn acknowledged(&self, gtid: Gtid, changes: Vec<Change>) {
        self.history().insert(gtid, changes);
        self.transactions.send_modify(|n| *n += 1);
    }

    pub fn transactions(&self) -> u64 {
        *self.transactions.borrow()
    }

    /// Waits until there are at least `transactions`.
    pub async fn reached(&self, transactions: u64) {
        // The sender lives as long as `self` does, so this cannot fail.
        let _ = self.transactions.subscribe().wait_for(|n| *n >= transactions).await;
    }

    /// How many transactions came after `gtid`.
    pub fn count_after(&self, gtid: Gtid) -> u64 {
        self.history().range((Bound::Excluded(gtid), Bound::Unbounded)).count() as u64
    }

    /// The state just before `gtid`, with all `tables`, even empty ones.
    pub fn before(&self, gtid: Gtid, tables: impl Iterator<Item = &'static str>) -> State {
        let mut state = State {
            gtids: GtidSet::new(),
            tables: tables.map(|name| (name, Rows::new())).collect(),
        };
        for (gtid, changes) in self.history().range(..gtid) {
            state.gtids.insert(*gtid);
            for Change { table, id, row } in changes {
                let rows = state.tables.entry(table).or_default();
                match row {
                    Some(row) => rows.insert(*id, row.clone()),
                    None => rows.remove(id),
                };
            }
        }
        state
    }

    fn history(&self) -> MutexGuard<'_, BTreeMap<Gtid, Vec<Change>>> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sha256 of a table's rows in the order of their ids, every value behind its length, so that none runs into the next.
pub fn checksum(rows: &Rows) -> String {
    const NULL: u64 = u64::MAX;
    let mut hash = Sha256::new();
    for row in rows.values() {
        for value in row {
            hash.update(value.as_ref().map_or(NULL, |v| v.len() as u64).to_le_bytes());
            hash.update(value.as_deref().unwrap_or_default());
        }
    }
    format!("{:x}", hash.finalize())
}
