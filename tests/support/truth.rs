//! What a server's tables hold, to be compared with what another one's hold.

use std::collections::BTreeMap;

use mysql_pitr::mysql::query::Session;

/// Every table of every user schema: its definition, its number of rows and its checksum.
pub type Truth = BTreeMap<String, (String, u64, u64)>;

pub async fn truth(session: &mut Session) -> Truth {
    let tables: Vec<(String, String)> = session
        .rows(
            "SELECT table_schema, table_name FROM information_schema.tables WHERE table_type = 'BASE TABLE' \
             AND table_schema NOT IN ('mysql', 'sys', 'information_schema', 'performance_schema')",
        )
        .await
        .unwrap();
    let mut truth = Truth::new();
    for (schema, table) in tables {
        let name = format!("`{schema}`.`{table}`");
        let (_, definition): (String, String) = session.one(&format!("SHOW CREATE TABLE {name}")).await.unwrap();
        let (_, checksum): (String, Option<u64>) = session.one(&format!("CHECKSUM TABLE {name} EXTENDED")).await.unwrap();
        let (rows,): (u64,) = session.one(&format!("SELECT COUNT(*) FROM {name}")).await.unwrap();
        truth.insert(name, (without_counter(&definition), rows, checksum.unwrap_or(0)));
    }
    truth
}

/// AUTO_INCREMENT's next value is not replicated for values that were rolled back.
fn without_counter(definition: &str) -> String {
    match definition.split_once(" AUTO_INCREMENT=") {
        Some((before, after)) => format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit())),
        None => definition.to_owned(),
    }
}
