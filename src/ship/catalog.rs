//! What was shipped, kept in SQLite for a quick look and for comparing hashes: a cache of the bucket, never the truth.
//!
//! Delete the file at any time. Whatever fails here is logged and changes nothing about shipping.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, bail};
use rusqlite::{Connection, params};
use tracing::warn;

use crate::{
    archive::keys::{BinlogPlace, SegmentRange},
    support::hint::OrHint,
};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS segment (
        label_ns INTEGER NOT NULL, name TEXT NOT NULL, start INTEGER NOT NULL, end INTEGER NOT NULL, sha256 TEXT NOT NULL,
        PRIMARY KEY (label_ns, name, start, end)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS sealed (
        label_ns INTEGER NOT NULL, name TEXT NOT NULL, server_uuid TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
        PRIMARY KEY (label_ns, name)
    ) WITHOUT ROWID;
";

/// Held by whoever ships or takes snapshots with this state file.
#[derive(Debug)]
pub struct StateLock {
    _file: File,
}

impl StateLock {
    /// None where another process holds it.
    pub fn try_take(state: &Path) -> anyhow::Result<Option<StateLock>> {
        let path = with_suffix(state, ".lock");
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot create the state folder {}", parent.display()))
                .hint("set [state] path to a folder that mysql-pitr may write")?;
        }
        let file = File::create(&path)
            .with_context(|| format!("cannot create the lock file {}", path.display()))
            .hint("set [state] path to a folder that mysql-pitr may write")?;
        match file.try_lock() {
            Ok(()) => Ok(Some(StateLock { _file: file })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(e)) => bail!("cannot lock {}: {e}", path.display()),
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut text = path.as_os_str().to_owned();
    text.push(suffix);
    text.into()
}

/// The open catalog; without a database where it could not be opened.
#[derive(Debug)]
pub struct Catalog {
    database: Option<Mutex<Connection>>,
}

impl Catalog {
    /// Opens or creates the file; a damaged one is replaced, for the bucket knows everything.
    pub fn open(path: &Path) -> Catalog {
        let opened = connect(path).or_else(|e| {
            warn!(path = %path.display(), error = %e, "the catalog is unreadable and is made anew");
            let _ = std::fs::remove_file(path);
            connect(path)
        });
        if let Err(e) = &opened {
            warn!(path = %path.display(), error = %e, "shipping without a catalog");
        }
        Catalog {
            database: opened.ok().map(Mutex::new),
        }
    }

    fn with<T>(&self, what: &str, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Option<T> {
        let database = self.database.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        query(&database)
            .inspect_err(|e| warn!(error = %e, "the catalog could not {what}"))
            .ok()
    }

    /// A segment is durable.
    pub fn segment_stored(&self, place: &BinlogPlace, range: SegmentRange, sha256: &str) {
        self.with("note a segment", |db| {
            db.prepare_cached("INSERT OR REPLACE INTO segment VALUES (?, ?, ?, ?, ?)")?
                .execute(params![
                    place.label_ns,
                    place.name,
                    range.start.cast_signed(),
                    range.end.cast_signed(),
                    sha256
                ])
        });
    }

    /// The segments of a binlog that this catalog saw stored, with their hashes, by start.
    pub fn segments(&self, place: &BinlogPlace) -> Vec<(SegmentRange, String)> {
        self.with("list segments", |db| {
            let mut query =
                db.prepare_cached("SELECT start, end, sha256 FROM segment WHERE label_ns = ? AND name = ? ORDER BY start")?;
            let rows = query.query_map(params![place.label_ns, place.name], |row| {
                let range = SegmentRange {
                    start: row.get::<_, i64>(0)?.cast_unsigned(),
                    end: row.get::<_, i64>(1)?.cast_unsigned(),
                };
                Ok((range, row.get(2)?))
            })?;
            rows.collect()
        })
        .unwrap_or_default()
    }

    /// Binlog and position up to which this catalog saw everything stored, of the newest binlog it knows: what is known of the
    /// watermark while the store does not answer.
    pub fn watermark(&self) -> Option<(String, u64)> {
        self.with("tell the watermark", |db| {
            let mut query = db.prepare_cached(
                "SELECT label_ns, name, end FROM segment UNION ALL SELECT label_ns, name, bytes FROM sealed \
                 ORDER BY 1 DESC, 3 DESC LIMIT 1",
            )?;
            let mut rows = query.query_map([], |row| Ok((row.get(1)?, row.get::<_, i64>(2)?.cast_unsigned())))?;
            rows.next().transpose()
        })
        .flatten()
    }

    /// A binlog is sealed: its segments' hashes are no longer needed.
    pub fn sealed(&self, place: &BinlogPlace, sha256: &str, bytes: u64) {
        self.with("note a sealed binlog", |db| {
            db.execute(
                "DELETE FROM segment WHERE label_ns = ? AND name = ?",
                params![place.label_ns, place.name],
            )?;
            let uuid = place.server_uuid.to_string();
            db.execute(
                "INSERT OR REPLACE INTO sealed VALUES (?, ?, ?, ?, ?)",
                params![place.label_ns, place.name, uuid, sha256, bytes.cast_signed()],
            )
        });
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let database = Connection::open(path)?;
    database.pragma_update(None, "journal_mode", "WAL")?;
    // A cache may lose its last lines in a power cut.
    database.pragma_update(None, "synchronous", "NORMAL")?;
    database.execute_batch(SCHEMA)?;
    Ok(database)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// i1: whatever happens to the file, there is a working catalog.
    #[test]
    fn i1_a_damaged_catalog_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        std::fs::write(&path, vec![b'x'; 8192]).unwrap();
        let catalog = Catalog::open(&path);
        let place = BinlogPlace {
            server_uuid: uuid::Uuid::nil(),
            label_ns: 1,
            name: "b.1".into(),
        };
        catalog.segment_stored(&place, SegmentRange { start: 0, end: 9 }, "aa");
        assert_eq!(catalog.segments(&place), [(SegmentRange { start: 0, end: 9 }, "aa".into())]);
    }

    #[test]
    fn one_process_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let held = StateLock::try_take(&path).unwrap();
        assert!(held.is_some());
        assert!(StateLock::try_take(&path).unwrap().is_none());
        drop(held);
        assert!(StateLock::try_take(&path).unwrap().is_some());
    }
}
