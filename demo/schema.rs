//! The tables of the demo, and statements on them together with what they do.

use crate::truth::{Change, Row};

pub const SCHEMA: &str = "shop";
pub const ACCOUNTS: &str = "accounts";
pub const TRANSFERS: &str = "transfers";
/// The one that will be dropped.
pub const ORDERS: &str = "orders";
pub const ORDER_LINES: &str = "order_lines";
pub const EVENTS: &str = "events";

/// Every table and its columns. All have an `id`, which comes first.
const TABLES: [(&str, &str); 5] = [
    (
        ACCOUNTS,
        "id BIGINT UNSIGNED PRIMARY KEY, owner VARCHAR(60) NOT NULL, balance DECIMAL(12,2) NOT NULL, version INT NOT NULL",
    ),
    (
        TRANSFERS,
        "id BIGINT UNSIGNED PRIMARY KEY, source BIGINT UNSIGNED NOT NULL, target BIGINT UNSIGNED NOT NULL, \
         amount DECIMAL(12,2) NOT NULL, booked_at DATETIME(6) NOT NULL, KEY (source), KEY (target)",
    ),
    (
        ORDERS,
        "id BIGINT UNSIGNED PRIMARY KEY, customer VARCHAR(60) NOT NULL, status ENUM('new', 'paid', 'shipped') NOT NULL, \
         total DECIMAL(12,2) NOT NULL, placed_at DATETIME(6) NOT NULL, KEY (status)",
    ),
    (
        ORDER_LINES,
        "id BIGINT UNSIGNED PRIMARY KEY, order_id BIGINT UNSIGNED NOT NULL, article VARCHAR(60) NOT NULL, \
         quantity INT NOT NULL, KEY (order_id)",
    ),
    (
        EVENTS,
        "id BIGINT UNSIGNED PRIMARY KEY, happened_at DATETIME(6) NOT NULL, body JSON NOT NULL, note TEXT",
    ),
];

pub fn tables() -> impl Iterator<Item = &'static str> {
    TABLES.iter().map(|(name, _)| *name)
}

/// The statements that make the schema.
pub fn definitions() -> Vec<String> {
    let tables = TABLES
        .iter()
        .map(|(name, columns)| format!("CREATE TABLE {SCHEMA}.{name} ({columns})"));
    [format!("CREATE DATABASE {SCHEMA}")].into_iter().chain(tables).collect()
}

/// One statement of a transaction, and what it does as far as the truth is concerned.
#[derive(Debug)]
pub struct Step {
    pub sql: String,
    pub change: Change,
}

/// `row` without the id.
pub fn insert(table: &'static str, id: u64, row: Row) -> Step {
    let row: Row = [Some(id.to_string())].into_iter().chain(row).collect();
    let values: Vec<String> = row.iter().map(literal).collect();
    Step {
        sql: format!("INSERT INTO {SCHEMA}.{table} VALUES ({})", values.join(", ")),
        change: Change {
            table,
            id,
            row: Some(row),
        },
    }
}

/// `set` is SQL, so that the server computes; `row`, without the id, is what must come of it.
pub fn update(table: &'static str, id: u64, set: &str, row: Row) -> Step {
    Step {
        sql: format!("UPDATE {SCHEMA}.{table} SET {set} WHERE id = {id}"),
        change: Change {
            table,
            id,
            row: Some([Some(id.to_string())].into_iter().chain(row).collect()),
        },
    }
}

pub fn delete(table: &'static str, id: u64) -> Step {
    Step {
        sql: format!("DELETE FROM {SCHEMA}.{table} WHERE id = {id}"),
        change: Change { table, id, row: None },
    }
}

/// A value as SQL. Numbers too are written as strings, which the server takes as such.
fn literal(value: &Option<String>) -> String {
    match value {
        None => "NULL".into(),
        Some(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''")),
    }
}
