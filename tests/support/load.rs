//! Binlogs to ship.

use super::mysql::Server;

/// 8 KB that do not compress.
const RANDOM_8_KB: &str = "CONCAT(RANDOM_BYTES(1000), RANDOM_BYTES(1000), RANDOM_BYTES(1000), RANDOM_BYTES(1000), \
                           RANDOM_BYTES(1000), RANDOM_BYTES(1000), RANDOM_BYTES(1000), RANDOM_BYTES(1000))";
const THOUSAND: &str = "(WITH RECURSIVE n AS (SELECT 1 i UNION ALL SELECT i + 1 FROM n WHERE i < 1000) SELECT i FROM n) n";

/// Writes about so much into `d.t (v)`, and closes the binlog.
pub async fn write_binlog(server: &Server, megabytes: usize) {
    for _ in 0..megabytes / 8 {
        server
            .execute(&[&format!("INSERT INTO d.t (v) SELECT {RANDOM_8_KB} FROM {THOUSAND}")])
            .await;
    }
    server
        .execute(&["INSERT INTO d.t (v) VALUES (RANDOM_BYTES(700))", "FLUSH LOCAL BINARY LOGS"])
        .await;
}

/// Names, oldest first.
pub async fn server_binlogs(server: &Server) -> Vec<String> {
    let logs = server.root().await.binary_logs().await.unwrap();
    logs.into_iter().map(|l| l.name).collect()
}
