//! Writes: binlogs to ship, and writers that go on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{task::JoinSet, time::sleep};

use super::{eventually, mysql::Server};

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

const WRITERS: usize = 4;
/// What [`Load`] writes to.
pub const LOAD_TABLES: [&str; 3] = [
    "CREATE DATABASE d",
    "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, w INT, v VARCHAR(500), KEY (w))",
    "CREATE TABLE d.sums (w INT PRIMARY KEY, n BIGINT)",
];

/// Writers that go on until they are told to stop. What each one writes depends on what it wrote before.
pub struct Load {
    stop: Arc<AtomicBool>,
    /// How often each has written, and whether it was told to stop.
    writers: JoinSet<(u64, bool)>,
}

impl Load {
    /// As fast as the server takes it.
    pub async fn start(server: &Server) -> Load {
        Load::start_paced(server, Duration::ZERO).await
    }

    /// Each writer pauses so long before it writes again: a replica on slow disks keeps up.
    pub async fn start_paced(server: &Server, pause: Duration) -> Load {
        let (stop, mut writers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
        for w in 0..WRITERS {
            let (stop, mut session) = (stop.clone(), server.root().await);
            writers.spawn(async move {
                let mut rounds = 0;
                while !stop.load(Ordering::Relaxed) {
                    for sql in [
                        format!("INSERT INTO d.t (w, v) VALUES ({w}, REPEAT('{rounds}', 100))"),
                        format!("INSERT INTO d.sums VALUES ({w}, 1) ON DUPLICATE KEY UPDATE n = (n * 3 + {rounds}) % 1000003"),
                    ] {
                        if session.execute(&sql).await.is_err() {
                            return (rounds, false);
                        }
                    }
                    rounds += 1;
                    sleep(pause).await;
                }
                (rounds, true)
            });
        }
        Load { stop, writers }
    }

    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let writers = self.writers.join_all().await;
        assert!(writers.iter().all(|(rounds, is_well)| *rounds > 0 && *is_well), "{writers:?}");
    }

    /// The server dies under it.
    pub async fn broken_off(self) {
        let writers = self.writers.join_all().await;
        assert!(
            writers.iter().all(|(rounds, is_well)| *rounds > 0 && !*is_well),
            "{writers:?}"
        );
    }
}

/// Waits until a server has so many rows of a load more than now.
pub async fn wait_rows(server: &Server, more: u64) {
    let wanted = rows(server).await + more;
    eventually("the load goes on", async || rows(server).await >= wanted).await;
}

async fn rows(server: &Server) -> u64 {
    server.root().await.one::<(u64,)>("SELECT COUNT(*) FROM d.t").await.unwrap().0
}
