//! The proof: every table of the recovered server, read through plain SELECTs, against the truth.

use std::collections::BTreeSet;

use anyhow::Context;
use mysql_async::Value;
use mysql_pitr::{binlog::gtid::GtidSet, mysql::query::Session};
use serde::Serialize;

use crate::{
    schema::SCHEMA,
    truth::{Row, Rows, State, checksum},
};

/// What was found. Equal means: no differences.
#[derive(Debug, Serialize)]
pub struct Proof {
    pub gtid_executed_expected: GtidSet,
    pub gtid_executed_recovered: GtidSet,
    pub tables: Vec<TableProof>,
    /// In words, each with an example.
    pub differences: Vec<String>,
}

#[derive(Debug, Serialize)]
pub struct TableProof {
    pub table: String,
    pub rows_expected: u64,
    pub rows_recovered: u64,
    pub sha256_expected: String,
    pub sha256_recovered: String,
}

impl TableProof {
    pub fn is_equal(&self) -> bool {
        self.sha256_expected == self.sha256_recovered
    }
}

impl Proof {
    pub fn rows_expected(&self) -> u64 {
        self.tables.iter().map(|t| t.rows_expected).sum()
    }

    pub fn rows_recovered(&self) -> u64 {
        self.tables.iter().map(|t| t.rows_recovered).sum()
    }
}

/// Compares the server behind `session` with what it must hold.
pub async fn prove(session: &mut Session, expected: &State) -> anyhow::Result<Proof> {
    let executed = session.gtid_executed().await?;
    let mut differences = gtid_differences(&expected.gtids, &executed);
    let there = tables_there(session).await?;
    for table in there.iter().filter(|t| !expected.tables.contains_key(t.as_str())) {
        differences.push(format!("the table {SCHEMA}.{table} should not be there"));
    }
    let mut tables = Vec::new();
    for (table, rows) in &expected.tables {
        let recovered = if there.contains(*table) {
            read(session, table).await?
        } else {
            differences.push(format!("the table {SCHEMA}.{table} is missing"));
            Rows::new()
        };
        differences.extend(row_differences(table, rows, &recovered));
        tables.push(TableProof {
            table: format!("{SCHEMA}.{table}"),
            rows_expected: rows.len() as u64,
            rows_recovered: recovered.len() as u64,
            sha256_expected: checksum(rows),
            sha256_recovered: checksum(&recovered),
        });
    }
    Ok(Proof {
        gtid_executed_expected: expected.gtids.clone(),
        gtid_executed_recovered: executed,
        tables,
        differences,
    })
}

async fn tables_there(session: &mut Session) -> anyhow::Result<BTreeSet<String>> {
    let sql = format!("SELECT table_name FROM information_schema.tables WHERE table_schema = '{SCHEMA}'");
    let names: Vec<(String,)> = session.rows(&sql).await?;
    Ok(names.into_iter().map(|(name,)| name).collect())
}

async fn read(session: &mut Session, table: &str) -> anyhow::Result<Rows> {
    let rows: Vec<mysql_async::Row> = session.rows(&format!("SELECT * FROM {SCHEMA}.{table} ORDER BY id")).await?;
    rows.into_iter()
        .map(|row| {
            let row: Row = row.unwrap().into_iter().map(text).collect::<anyhow::Result<_>>()?;
            let id = row.first().cloned().flatten().context("a row without an id")?;
            Ok((id.parse()?, row))
        })
        .collect()
}

/// Plain queries are answered in texts.
fn text(value: Value) -> anyhow::Result<Option<String>> {
    match value {
        Value::NULL => Ok(None),
        Value::Bytes(bytes) => Ok(Some(String::from_utf8(bytes)?)),
        other => anyhow::bail!("the server answered {other:?} where a text was expected"),
    }
}

fn gtid_differences(expected: &GtidSet, executed: &GtidSet) -> Vec<String> {
    let (lacks, extra) = (expected.subtract(executed), executed.subtract(expected));
    let mut out = Vec::new();
    if !lacks.is_empty() {
        out.push(format!("transactions missing: {}, namely {lacks}", lacks.count()));
    }
    if !extra.is_empty() {
        out.push(format!("transactions too many: {}, namely {extra}", extra.count()));
    }
    out
}

fn row_differences(table: &str, expected: &Rows, recovered: &Rows) -> Vec<String> {
    let only_in = |a: &Rows, b: &Rows| -> Vec<u64> { a.keys().filter(|id| !b.contains_key(id)).copied().collect() };
    let (missing, extra) = (only_in(expected, recovered), only_in(recovered, expected));
    let changed: Vec<u64> = expected
        .iter()
        .filter(|(id, row)| recovered.get(id).is_some_and(|other| other != *row))
        .map(|(id, _)| *id)
        .collect();
    let shown = |rows: &Rows, id| rows.get(id).map_or("no row".to_owned(), describe);
    let groups = [
        ("missing from", &missing),
        ("too many in", &extra),
        ("different in", &changed),
    ];
    groups
        .into_iter()
        .filter_map(|(what, ids)| {
            let first = ids.first()?;
            let (expected, recovered) = (shown(expected, first), shown(recovered, first));
            let count = ids.len();
            Some(format!(
                "rows {what} {SCHEMA}.{table}: {count}, of which the first: expected {expected}, recovered {recovered}"
            ))
        })
        .collect()
}

fn describe(row: &Row) -> String {
    let values: Vec<&str> = row.iter().map(|value| value.as_deref().unwrap_or("NULL")).collect();
    format!("({})", values.join(", "))
}
