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
        let checksum = checksum(session, &schema, &table).await;
        let (rows,): (u64,) = session.one(&format!("SELECT COUNT(*) FROM {name}")).await.unwrap();
        truth.insert(name, (without_counter(&definition), rows, checksum));
    }
    truth
}

/// CHECKSUM TABLE, except where generated columns are: there it gives another number after FLUSH TABLES (seen on 9.7.4).
async fn checksum(session: &mut Session, schema: &str, table: &str) -> u64 {
    let columns: Vec<(String, bool)> = session
        .rows(&format!(
            "SELECT column_name, generation_expression <> '' FROM information_schema.columns \
             WHERE table_schema = '{schema}' AND table_name = '{table}' ORDER BY ordinal_position"
        ))
        .await
        .unwrap();
    if !columns.iter().any(|(_, generated)| *generated) {
        let sql = format!("CHECKSUM TABLE `{schema}`.`{table}` EXTENDED");
        return session.one::<(String, Option<u64>)>(&sql).await.unwrap().1.unwrap_or(0);
    }
    let values: Vec<String> = columns
        .iter()
        .map(|(column, _)| format!("COALESCE(HEX(CAST(`{column}` AS BINARY)), 'NULL')"))
        .collect();
    let sql = format!(
        "SELECT CAST(COALESCE(SUM(CRC32(CONCAT_WS(',', {}))), 0) AS UNSIGNED) FROM `{schema}`.`{table}`",
        values.join(", ")
    );
    session.one::<(u64,)>(&sql).await.unwrap().0
}

/// Whatever else a server's users made: views, triggers, routines, events, accounts and what these may do.
pub type Objects = BTreeMap<String, String>;

pub async fn objects(session: &mut Session) -> Objects {
    let mut objects = Objects::new();
    for sql in [
        "SELECT CONCAT_WS('.', 'view', table_schema, table_name), \
         CONCAT_WS('|', view_definition, check_option, is_updatable, definer, security_type) \
         FROM information_schema.views WHERE table_schema <> 'sys'",
        "SELECT CONCAT_WS('.', 'trigger', trigger_schema, trigger_name), \
         CONCAT_WS('|', event_object_table, action_timing, event_manipulation, action_order, action_statement, definer, sql_mode) \
         FROM information_schema.triggers WHERE trigger_schema <> 'sys'",
        "SELECT CONCAT_WS('.', routine_type, routine_schema, routine_name), \
         CONCAT_WS('|', data_type, routine_definition, is_deterministic, sql_data_access, security_type, sql_mode, definer) \
         FROM information_schema.routines WHERE routine_schema <> 'sys'",
        // A replica disables whatever event it is told of: `recover` reports that, since it cannot be helped.
        "SELECT CONCAT_WS('.', 'event', event_schema, event_name), \
         CONCAT_WS('|', event_type, execute_at, interval_value, interval_field, starts, ends, on_completion, event_definition, \
         definer, time_zone, sql_mode) FROM information_schema.events",
        "SELECT CONCAT_WS('.', 'database', schema_name), CONCAT_WS('|', default_character_set_name, default_collation_name) \
         FROM information_schema.schemata",
        "SELECT CONCAT_WS('.', 'user', user, host), \
         CONCAT_WS('|', plugin, HEX(authentication_string), account_locked, password_lifetime, user_attributes) FROM mysql.user",
        "SELECT CONCAT_WS('.', 'role', from_user, from_host, to_user, to_host), with_admin_option FROM mysql.role_edges",
    ] {
        objects.extend(session.rows::<(String, String)>(sql).await.unwrap());
    }
    let users: Vec<(String, String)> = session.rows("SELECT user, host FROM mysql.user").await.unwrap();
    for (user, host) in users {
        let grants: Vec<(String,)> = session.rows(&format!("SHOW GRANTS FOR `{user}`@`{host}`")).await.unwrap();
        objects.insert(
            format!("grants.{user}.{host}"),
            grants.into_iter().map(|(g,)| g + "; ").collect(),
        );
    }
    objects
}

/// AUTO_INCREMENT's next value is not replicated for values that were rolled back.
fn without_counter(definition: &str) -> String {
    match definition.split_once(" AUTO_INCREMENT=") {
        Some((before, after)) => format!("{before}{}", after.trim_start_matches(|c: char| c.is_ascii_digit())),
        None => definition.to_owned(),
    }
}
