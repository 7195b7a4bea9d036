//! The lock under which a snapshot of volumes begins: never queued behind a long query, never held past its deadline, and known to have been
//! held all along.

use std::time::Duration;

use mysql_pitr::{
    mysql::{
        freeze::{Frozen, Limits, Lock},
        query::Session,
    },
    support::hint::message,
};

use crate::support::{eventually, mysql::Server};

async fn server() -> Server {
    let server = Server::start(&[]).await;
    server
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(20))",
            "INSERT INTO d.t (v) VALUES ('one')",
            "GRANT RELOAD ON *.* TO mysql_pitr@localhost",
        ])
        .await;
    server
}

fn limits(lock: Lock, hold_s: u64, patience_s: u64) -> Limits {
    Limits {
        lock,
        wait: Duration::from_secs(1),
        hold: Duration::from_secs(hold_s),
        patience: Duration::from_secs(patience_s),
    }
}

async fn write(server: &Server) {
    server.execute(&["INSERT INTO d.t (v) VALUES ('more')"]).await;
}

/// Whether somebody waits for a lock that is held.
async fn somebody_waits(server: &Server) -> bool {
    let sql = "SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE STATE LIKE 'Waiting for global read lock%'";
    server.root().await.one::<(u64,)>(sql).await.unwrap().0 > 0
}

#[tokio::test]
async fn nothing_is_written_while_it_is_held() {
    let server = server().await;
    let frozen = Frozen::take(
        &server.agent_endpoint(),
        &limits(Lock::Tables, 200, 60),
        std::slice::from_ref(&server.datadir),
    )
    .await;
    let frozen = frozen.unwrap();
    let before = server.gtid_executed().await;
    assert_eq!(frozen.gtids, before);
    let mut session = server.root().await;
    let writer = tokio::spawn(async move {
        session
            .execute_within("INSERT INTO d.t (v) VALUES ('late')", Duration::from_secs(200))
            .await
    });
    eventually("a writer waits", async || somebody_waits(&server).await).await;
    assert_eq!(server.gtid_executed().await, before);
    let thawed = frozen.thaw().await.unwrap();
    assert_eq!(thawed.gtids, before);
    let parts: Vec<&str> = thawed.parts.iter().map(|p| p.name).collect();
    assert_eq!(parts, ["lock", "flush logs", "sync", "thaw"]);
    writer.await.unwrap().unwrap();
    assert_ne!(server.gtid_executed().await, before);
}

#[tokio::test]
async fn with_an_instance_lock_writes_go_on() {
    let server = server().await;
    let frozen = Frozen::take(&server.agent_endpoint(), &limits(Lock::Instance, 200, 60), &[])
        .await
        .unwrap();
    let before = frozen.gtids.clone();
    write(&server).await;
    let thawed = frozen.thaw().await.unwrap();
    assert!(before.is_subset(&thawed.gtids) && before != thawed.gtids);
}

/// An agent that hangs: the server itself ends the lock, and whoever comes back learns it.
#[tokio::test]
async fn no_lock_outlives_its_deadline() {
    let server = server().await;
    let frozen = Frozen::take(&server.agent_endpoint(), &limits(Lock::Tables, 2, 60), &[])
        .await
        .unwrap();
    // It waits for as long as the lock is held.
    write(&server).await;
    let e = frozen.thaw().await.unwrap_err();
    assert!(
        message(&e).contains("does not count") || message(&e).contains("the lock was lost"),
        "{e:#}"
    );
    // One that dies loses it at once.
    let frozen = Frozen::take(&server.agent_endpoint(), &limits(Lock::Tables, 200, 60), &[])
        .await
        .unwrap();
    drop(frozen);
    write(&server).await;
}

#[tokio::test]
async fn a_long_query_is_not_waited_behind() {
    let server = server().await;
    let mut root = server.root().await;
    let (id,): (u64,) = root.one("SELECT CONNECTION_ID()").await.unwrap();
    let long = tokio::spawn(async move {
        root.execute_within("SELECT SLEEP(1000) FROM d.t", Duration::from_secs(1000))
            .await
    });
    let running =
        format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id} AND STATE = 'User sleep' AND TIME > 2");
    eventually("it has been running for longer than the lock would wait", async || {
        server.root().await.one::<(u64,)>(&running).await.unwrap().0 > 0
    })
    .await;
    let e = Frozen::take(&server.agent_endpoint(), &limits(Lock::Tables, 10, 6), &[])
        .await
        .map(drop)
        .unwrap_err();
    let said = message(&e);
    assert!(said.contains("could not be locked for 6 s"), "{said}");
    assert!(
        said.contains("the lock would wait behind query") && said.contains("SELECT SLEEP(1000)"),
        "{said}"
    );
    // Nobody waits for what is not there.
    write(&server).await;
    let waiting = tokio::spawn({
        let endpoint = server.agent_endpoint();
        async move {
            Frozen::take(&endpoint, &limits(Lock::Tables, 60, 120), &[])
                .await
                .map(Frozen::thaw)
        }
    });
    Session::connect(&server.root_endpoint())
        .await
        .unwrap()
        .execute(&format!("KILL {id}"))
        .await
        .unwrap();
    assert!(long.await.unwrap().is_err());
    waiting.await.unwrap().unwrap().await.unwrap();
}
