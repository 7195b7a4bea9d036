//! `--verify tables`: every table is read whole, checked, counted and summed.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use anyhow::{anyhow, bail};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::{
    mysql::query::Session,
    support::{hint::with_hint, progress::Progress},
};

use super::instance::Instance;

/// A terabyte's B-trees take hours. A server that dies ends its connections at once.
const TABLE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// A server that crashes writes a stack trace, and perhaps a core, first.
const DEATH_PATIENCE: Duration = Duration::from_secs(10);
/// As many as the machine has processors, but no more: each fills the buffer pool with a table of its own.
const SESSIONS_MAX: usize = 8;

/// A table that is sound.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckedTable {
    /// `schema.table`
    pub name: String,
    pub rows: u64,
    /// Of CHECKSUM TABLE, to be compared with the same at another server; none where the engine has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checksum: Option<u64>,
}

struct Work {
    todo: RefCell<VecDeque<(String, String)>>,
    /// What is being checked at this moment.
    doing: RefCell<BTreeSet<String>>,
    done: RefCell<Vec<CheckedTable>>,
    total: usize,
    rows: Cell<u64>,
}

/// Checks all tables, largest first, a few at a time.
///
/// # Errors
/// Names the first table that is not sound. InnoDB ends the whole server at a page that it cannot read.
pub async fn check_tables(instance: &mut Instance, progress: &Progress) -> anyhow::Result<Vec<CheckedTable>> {
    let tables: VecDeque<(String, String)> = instance
        .session
        .rows(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE' \
             AND table_schema NOT IN ('information_schema', 'performance_schema') \
             ORDER BY data_length + index_length DESC, table_schema, table_name",
        )
        .await?
        .into();
    let sessions = std::thread::available_parallelism().map_or(1, usize::from).min(SESSIONS_MAX);
    let work = Work {
        total: tables.len(),
        todo: RefCell::new(tables),
        doing: RefCell::default(),
        done: RefCell::default(),
        rows: Cell::new(0),
    };
    let checked = try_join_all((0..sessions).map(|_| check_some(instance, &work, progress))).await;
    if let Err(e) = checked {
        let Some(log) = instance.death(DEATH_PATIENCE).await else {
            return Err(e);
        };
        return Err(with_hint(died(&work.doing.borrow(), &log), DAMAGED_HINT));
    }
    let mut done = work.done.into_inner();
    done.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(done)
}

const DAMAGED_HINT: &str = "begin again with --restart; if it is damaged then too, the snapshot is: recover from an older one, to a moment before this one";

/// The error log names the table's file, in most versions; if not, it is one of those that were being checked.
fn died(doing: &BTreeSet<String>, log: &str) -> anyhow::Error {
    let named = doing.iter().filter(|name| log.contains(&name.replacen('.', "/", 1)));
    let mut suspects: Vec<&str> = named.map(String::as_str).collect();
    if suspects.is_empty() {
        suspects = doing.iter().map(String::as_str).collect();
    }
    anyhow!(
        "a table is damaged: the server died while it read {}: {log}",
        suspects.join(" or ")
    )
}

async fn check_some(instance: &Instance, work: &Work, progress: &Progress) -> anyhow::Result<()> {
    let mut session = instance.another_session().await?;
    loop {
        let Some((schema, table)) = work.todo.borrow_mut().pop_front() else {
            break;
        };
        let name = format!("{schema}.{table}");
        work.doing.borrow_mut().insert(name.clone());
        let quoted = format!("{}.{}", quote(&schema), quote(&table));
        let checked = check(&mut session, name.clone(), &quoted).await?;
        work.doing.borrow_mut().remove(&name);
        work.rows.set(work.rows.get() + checked.rows);
        work.done.borrow_mut().push(checked);
        progress.update(|| {
            let (done, rows) = (work.done.borrow().len(), work.rows.get());
            format!("{done} of {} tables, {rows} rows", work.total)
        });
    }
    session.close().await;
    Ok(())
}

async fn check(session: &mut Session, name: String, quoted: &str) -> anyhow::Result<CheckedTable> {
    let said: Vec<(String, String, String, String)> =
        session.rows_within(&format!("CHECK TABLE {quoted}"), TABLE_TIMEOUT).await?;
    let complaints: Vec<String> = said
        .into_iter()
        .filter(|(_, _, kind, text)| is_complaint(kind, text))
        .map(|(_, _, kind, text)| format!("{kind}: {text}"))
        .collect();
    if !complaints.is_empty() {
        let e = anyhow!("table {name} is damaged: {}", complaints.join("; "));
        return Err(with_hint(e, DAMAGED_HINT));
    }
    let count: Vec<(u64,)> = session
        .rows_within(&format!("SELECT COUNT(*) FROM {quoted}"), TABLE_TIMEOUT)
        .await?;
    let sum: Vec<(String, Option<u64>)> = session
        .rows_within(&format!("CHECKSUM TABLE {quoted}"), TABLE_TIMEOUT)
        .await?;
    let (Some((rows,)), Some((_, checksum))) = (count.into_iter().next(), sum.into_iter().next()) else {
        bail!("the server gave no row count or no checksum for table {name}");
    };
    Ok(CheckedTable { name, rows, checksum })
}

/// CHECK TABLE answers in rows, also where something is wrong. A note says that the engine has no check.
fn is_complaint(kind: &str, text: &str) -> bool {
    match kind.to_lowercase().as_str() {
        "status" => !text.eq_ignore_ascii_case("OK") && !text.contains("up to date"),
        "note" => false,
        _ => true,
    }
}

fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_check_table_says_beside_ok_is_a_complaint() {
        for (kind, text, is) in [
            ("status", "OK", false),
            ("status", "Table is already up to date", false),
            ("status", "Operation failed", true),
            ("note", "The storage engine for the table doesn't support check", false),
            ("Warning", "InnoDB: The B-tree of index PRIMARY is corrupted.", true),
            ("error", "Corrupt", true),
        ] {
            assert_eq!(is_complaint(kind, text), is, "{kind}: {text}");
        }
    }

    #[test]
    fn of_the_tables_that_were_read_the_log_names_the_damaged_one() {
        let doing = BTreeSet::from(["a.t".to_owned(), "b.t".to_owned()]);
        let said = died(&doing, "a failed read of tablespace b/t").to_string();
        assert!(said.contains("while it read b.t:"), "{said}");
        assert!(died(&doing, "signal 6").to_string().contains("while it read a.t or b.t:"));
    }

    #[test]
    fn names_are_quoted() {
        assert_eq!(quote("a`b"), "`a``b`");
    }
}
