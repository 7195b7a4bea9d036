//! Promotions, on real servers that replicate: nothing that the new primary holds is missing from the archive's path, and nothing that it
//! lacks comes back.

use std::time::Duration;

use crate::support::{
    eventually,
    golden::{assert_error, assert_text},
    mysql::Server,
    node::{Agent, Node, path_text},
    orchestrator::How,
    shard::Shard,
    story::{Moment, assert_holds, moment_on},
};
use mysql_pitr::{
    archive::records::{Reason, SnapshotState, Timeline},
    binlog::gtid::GtidSet,
};
use tokio::time::Instant;

const INSERT: &str = "INSERT INTO d.t (v) VALUES (HEX(RANDOM_BYTES(300)))";
/// From the moment that a promoted server can be written to. Orchestrator is polled every five minutes.
const PROMOTED_WITHIN: Duration = Duration::from_secs(5);
const ALARM: &str = "hint: if it is the shard's primary, run `mysql-pitr adopt` on it";

async fn timelines(node: &Node) -> Vec<Timeline> {
    node.archive().timelines().await.unwrap()
}

/// Parent, reason and whether it was adopted, of each timeline, the first one first.
async fn tree(node: &Node) -> Vec<(Option<u32>, Reason, bool)> {
    let timelines = timelines(node).await;
    timelines.into_iter().map(|t| (t.parent, t.reason, t.adopted)).collect()
}

/// The numbers on the current path.
async fn path(node: &Node) -> Vec<u32> {
    let plan = node.json(&["recover", "--latest", "--dry-run"]).await;
    let path = plan["path"].as_array().unwrap_or_else(|| panic!("no path in {plan}"));
    path.iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

/// Whether the plan for these arguments ends with exactly this set.
async fn plans(node: &Node, arguments: &[&str], gtids: &GtidSet) -> bool {
    let output = node.run(&[&["recover", "--dry-run", "--json"], arguments].concat()).await;
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    plan["target_gtids"] == gtids.to_string()
}

/// What `recover --latest` gives is what `server` holds.
async fn assert_latest_is(node: &Node, server: &Server, name: &str) {
    let moment = moment_on(server, INSERT).await;
    node.wait_shipped(server).await;
    assert_recovers(node, name, &["--latest"], &moment).await;
}

async fn assert_recovers(node: &Node, name: &str, arguments: &[&str], moment: &Moment) {
    let (recovered, _) = node.recover(name, arguments).await;
    assert_holds(&recovered, moment, name).await;
    recovered.stop_for_good().await;
}

/// What `list --diverged` names, all of it together.
async fn diverged(node: &Node) -> GtidSet {
    let found = node.json(&["list", "--diverged"]).await;
    let sets = found.as_array().unwrap().iter().map(|d| d["gtids"].as_str().unwrap());
    sets.map(|set| set.parse::<GtidSet>().unwrap())
        .fold(GtidSet::new(), |all, set| all.union(&set))
}

async fn wait_alarm(agent: &Agent) {
    eventually("an alarm", async || {
        agent.log().lines().any(|l| l.contains(" ERROR ") && l.contains(ALARM))
    })
    .await;
}

async fn status(node: &Node) -> (Option<i32>, String) {
    let output = node.run(&["status"]).await;
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

/// i13: the primary dies with transactions that its agent had not shipped. What its replica had of them is shipped from there; what it
/// had not comes back with the old server, and is kept apart. Then the old server, rebuilt, is promoted again.
#[tokio::test(flavor = "multi_thread")]
async fn i13_a_failover_keeps_what_the_new_primary_holds_and_nothing_else() {
    let mut shard = Shard::start(true).await;
    let first = moment_on(&shard.primary.server, INSERT).await;
    shard.primary.node.wait_shipped(&shard.primary.server).await;
    shard.primary.kill_agent().await;
    shard.primary.server.execute(&[INSERT, "FLUSH BINARY LOGS", INSERT]).await;
    shard.caught_up().await;
    shard.replica.server.execute(&["STOP REPLICA"]).await;
    let before = shard.primary.server.gtid_executed().await;
    shard.primary.server.execute(&[INSERT]).await;
    let ghost = shard.primary.server.gtid_executed().await.subtract(&before);
    shard.primary.server.kill().await;
    shard.orchestrator().kill(shard.primary.server.port);

    let writable_at = {
        shard.promote().await;
        Instant::now()
    };
    shard.tell_orchestrator();
    let second = moment_on(&shard.primary.server, INSERT).await;
    shard.primary.node.wait_shipped(&shard.primary.server).await;
    let took = writable_at.elapsed();
    assert!(
        took < PROMOTED_WITHIN,
        "shipped {took:?} after the promotion:\n{}",
        shard.primary.log()
    );
    let claimed = timelines(&shard.primary.node).await.pop().unwrap();
    assert_eq!(
        (claimed.id, claimed.parent, claimed.reason, claimed.adopted),
        (2, Some(1), Reason::Promotion, true)
    );
    assert!(claimed.confirmed_by.unwrap().ends_with("cluster demo"));
    assert!(before.is_subset(&second.gtids) && !ghost.is_subset(&second.gtids));
    assert_recovers(&shard.primary.node, "failed-over", &["--latest"], &second).await;

    // The old primary comes back as it was, and is written to.
    shard.replica.server.read_only = false;
    shard.replica.server.run().await;
    shard.orchestrator().revive(shard.replica.server.port);
    shard.replica.start_agent();
    shard.replica.server.execute(&[INSERT]).await;
    let ghosts = shard.replica.server.gtid_executed().await.subtract(&second.gtids);
    assert_eq!(ghosts.count(), 2);
    wait_alarm(shard.replica.agent.as_ref().unwrap()).await;
    eventually("the ghosts are shipped", async || {
        ghosts.is_subset(&diverged(&shard.primary.node).await)
    })
    .await;
    let listing = shard.replica.node.ok(&["list"]).await;
    assert!(listing.contains("NOT ADOPTED: off the path"), "{listing}");
    eventually("its status says so", async || {
        let (code, said) = status(&shard.replica.node).await;
        code == Some(1) && said.contains("OFF THE PATH")
    })
    .await;
    assert!(
        plans(
            &shard.primary.node,
            &["--latest"],
            &shard.primary.server.gtid_executed().await
        )
        .await
    );

    // It is rebuilt under its agent's eyes, and promoted by a planned switch.
    shard.replica.server.stop().await;
    shard.replica.server.rebuild_from(&shard.primary.server).await;
    shard.replica.server.replicate_from(&shard.primary.server).await;
    shard.tell_orchestrator();
    shard.primary.server.execute(&["FLUSH BINARY LOGS", INSERT]).await;
    shard.switch_over().await;
    shard.tell_orchestrator();
    let third = moment_on(&shard.primary.server, INSERT).await;
    shard.primary.node.wait_shipped(&shard.primary.server).await;
    let node = &shard.primary.node;
    // The old primary ships what it replicates until it has noticed that it is read-only.
    eventually("the path goes on", async || path(node).await.len() == 3).await;
    let last = timelines(node).await.pop().unwrap();
    assert_eq!((last.parent, last.reason, last.adopted), (Some(2), Reason::Promotion, true));
    assert!(!third.gtids.intersect(&ghosts).is_empty(), "its GTIDs are given out again");
    node.wait_shipped(&shard.primary.server).await;
    assert_recovers(node, "failed-back", &["--latest"], &third).await;
    assert!(plans(node, &["--target-gtid", &second.gtid], &second.gtids).await);
    assert_recovers(node, "before-it-all", &["--target-gtid", &first.gtid], &first).await;
    shard.primary.stop_agent().await;
    shard.replica.stop_agent().await;
}

/// i13: a promotion while Orchestrator is away is shipped at once, and adopted when it answers again. Then i8: what the new primary
/// purged before it was shipped is answered with a snapshot, by the server whose it is to take.
#[tokio::test(flavor = "multi_thread")]
async fn i13_a_promotion_that_nobody_confirms_is_adopted_once_somebody_does() {
    let mut shard = Shard::start(true).await;
    let candidate = shard.replica.server.uuid().await;
    // The primary's own agent runs beside this command, and leaves the request to the candidate's.
    let asked = shard.primary.node.json(&["snapshot"]).await;
    for snapshot in shard.primary.node.archive().snapshots().await.unwrap() {
        assert_eq!((snapshot.server_uuid, snapshot.timeline), (candidate, 1));
        assert_eq!(snapshot.state, SnapshotState::Complete);
    }
    let first = moment_on(&shard.primary.server, INSERT).await;
    shard.primary.node.wait_shipped(&shard.primary.server).await;
    let plan = shard.primary.node.json(&["recover", "--latest", "--dry-run"]).await;
    assert_eq!(plan["snapshot"], asked["id"]);

    shard.orchestrator().misbehave(How::NoLeader);
    shard.switch_over().await;
    let writable_at = Instant::now();
    let second = moment_on(&shard.primary.server, INSERT).await;
    let node = &shard.primary.node;
    eventually("it is shipped off the path", async || {
        plans(node, &["--latest", "--timeline", "2"], &second.gtids).await
    })
    .await;
    assert!(writable_at.elapsed() < PROMOTED_WITHIN, "{:?}", writable_at.elapsed());
    assert_eq!(
        tree(node).await,
        [(None, Reason::FirstStart, true), (Some(1), Reason::UnknownServer, false)]
    );
    wait_alarm(shard.primary.agent.as_ref().unwrap()).await;
    // The old primary is followed for a little while as a replica: its own history may hold what the new one wrote.
    assert_eq!(path(node).await, [1]);
    let plan = node.json(&["recover", "--latest", "--dry-run"]).await;
    let planned: GtidSet = plan["target_gtids"].as_str().unwrap().parse().unwrap();
    assert!(first.gtids.is_subset(&planned), "{plan}");

    shard.tell_orchestrator();
    shard.orchestrator().misbehave(How::Well);
    node.wait_shipped(&shard.primary.server).await;
    // What it holds may be on the path already, by way of the old primary.
    eventually("it is adopted", async || tree(node).await.len() > 2).await;
    assert_eq!(tree(node).await[2..], [(Some(1), Reason::Promotion, true)]);
    assert_eq!(path(node).await, [1, 3]);
    let third = moment_on(&shard.primary.server, INSERT).await;
    node.wait_shipped(&shard.primary.server).await;
    assert_recovers(node, "adopted", &["--latest"], &third).await;

    // A gap: the old primary is the candidate now, and its agent takes the snapshot.
    let before = node.archive().snapshots().await.unwrap().len();
    shard.primary.stop_agent().await;
    shard
        .primary
        .server
        .execute(&[INSERT, "FLUSH BINARY LOGS", INSERT, "FLUSH BINARY LOGS"])
        .await;
    let live: (String, u64, String, String, String) =
        shard.primary.server.root().await.one("SHOW BINARY LOG STATUS").await.unwrap();
    shard
        .primary
        .server
        .execute(&[&format!("PURGE BINARY LOGS TO '{}'", live.0), INSERT])
        .await;
    shard.caught_up().await;
    shard.primary.start_agent();
    shard.primary.node.wait_snapshots(before + 1).await;
    let fourth = moment_on(&shard.primary.server, INSERT).await;
    shard.primary.node.wait_shipped(&shard.primary.server).await;
    let node = &shard.primary.node;
    let snapshots = node.archive().snapshots().await.unwrap();
    assert_eq!(snapshots.len(), before + 1, "nobody else took one, too: {snapshots:?}");
    let answer = snapshots.last().unwrap();
    let tip = timelines(node).await.pop().unwrap().id;
    assert_eq!(
        (answer.server_uuid, answer.timeline),
        (shard.replica.server.uuid().await, tip)
    );
    assert!(plans(node, &["--latest"], &fourth.gtids).await);
    assert!(plans(node, &["--target-gtid", &second.gtid], &second.gtids).await);

    // And back, without a rebuild: the old server lost nothing.
    shard.switch_over().await;
    shard.tell_orchestrator();
    let node = &shard.primary.node;
    assert_latest_is(node, &shard.primary.server, "back").await;
    eventually("the path goes on", async || {
        let back = timelines(node).await.pop().unwrap();
        (back.parent, back.reason) == (Some(tip), Reason::Promotion)
    })
    .await;
    assert_recovers(node, "in-between", &["--target-gtid", &second.gtid], &second).await;
    shard.primary.stop_agent().await;
    shard.replica.stop_agent().await;
}

/// i13: without Orchestrator a promoted server is shipped off the path, loudly, until an operator adopts it. So are servers that come from
/// elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn i13_without_orchestrator_an_operators_word_moves_the_path() {
    let mut shard = Shard::start(false).await;
    let (a, b) = (shard.primary.server.uuid().await, shard.replica.server.uuid().await);
    let sockets = [
        path_text(&shard.primary.server.socket),
        path_text(&shard.replica.server.socket),
    ]
    .map(str::to_owned);
    let names: [(&str, &str); 2] = [(&sockets[0], "SOCKET"), (&sockets[1], "SOCKET")];
    let error = shard.replica.node.fails(&["adopt"]).await;
    assert_error("adopt: a replica", &error, &names);
    let error = shard.primary.node.fails(&["adopt"]).await;
    assert_error("adopt: the primary", &error, &names);

    let first = moment_on(&shard.primary.server, INSERT).await;
    shard.primary.node.wait_shipped(&shard.primary.server).await;
    shard.caught_up().await;
    shard.primary.server.kill().await;
    shard.promote().await;
    let second = moment_on(&shard.primary.server, INSERT).await;
    let node = &shard.primary.node;
    wait_alarm(shard.primary.agent.as_ref().unwrap()).await;
    eventually("it is shipped off the path", async || {
        plans(node, &["--latest", "--timeline", "2"], &second.gtids).await
    })
    .await;
    assert!(node.ok(&["list"]).await.contains("NOT ADOPTED: off the path"));
    assert!(second.gtids.subtract(&first.gtids).is_subset(&diverged(node).await));

    let said = node.ok(&["adopt", "--dry-run"]).await;
    assert_text("adopt --dry-run", &said, &names);
    assert_eq!(timelines(node).await.len(), 2, "nothing was changed");
    let said = node.ok(&["adopt"]).await;
    assert_text("adopt", &said, &names);
    assert_eq!(tree(node).await[2..], [(Some(1), Reason::Adoption, true)]);
    let adopted = timelines(node).await.pop().unwrap();
    assert!(adopted.confirmed_by.unwrap().starts_with("operator "));
    let third = moment_on(&shard.primary.server, INSERT).await;
    node.wait_shipped(&shard.primary.server).await;
    assert_recovers(node, "adopted", &["--latest"], &third).await;

    // The old primary, as it was, and a clone with an agent and this shard's name: neither moves the path.
    shard.replica.server.read_only = false;
    shard.replica.server.run().await;
    let alien = shard.primary.server.start_clone(&["--server-id=3"]).await;
    alien.execute(&["SET GLOBAL read_only = OFF"]).await;
    let alien_node = node.beside(&alien);
    let alien_agent = alien_node.agent();
    shard.replica.server.execute(&[INSERT]).await;
    alien.execute(&[INSERT]).await;
    let mut strays = shard.replica.server.gtid_executed().await.union(&alien.gtid_executed().await);
    strays = strays.subtract(&third.gtids);
    wait_alarm(&alien_agent).await;
    wait_alarm(shard.replica.agent.as_ref().unwrap()).await;
    eventually("what they write is shipped", async || strays.is_subset(&diverged(node).await)).await;
    let found = timelines(node).await;
    assert!(
        found.iter().all(|t| t.server_uuid == b || !t.adopted || t.id == 1),
        "{found:?}"
    );
    assert_eq!(found[0].server_uuid, a);
    assert!(plans(node, &["--latest"], &third.gtids).await);
    alien_agent.stop().await;
    alien.stop_for_good().await;
    shard.replica.stop_agent().await;
    shard.replica.server.stop().await;

    // The primary is put back from an old copy of its data folder, and goes on from there.
    shard.primary.server.stop().await;
    let copy = tempfile::tempdir().unwrap();
    shard.primary.server.copy_data_to(copy.path());
    shard.primary.server.run().await;
    shard.primary.server.execute(&[INSERT, "FLUSH BINARY LOGS", INSERT]).await;
    let node = &shard.primary.node;
    node.wait_shipped(&shard.primary.server).await;
    let undone = shard.primary.server.gtid_executed().await;
    shard.primary.server.kill().await;
    shard.primary.server.put_data_back(copy.path());
    shard.primary.server.run().await;
    let fourth = moment_on(&shard.primary.server, "INSERT INTO d.t (v) VALUES ('put back')").await;
    assert!(fourth.gtids.is_subset(&undone), "its GTIDs are given out again");
    eventually("the path goes on from the copy", async || {
        plans(node, &["--latest"], &fourth.gtids).await
    })
    .await;
    let child = timelines(node).await.pop().unwrap();
    assert_eq!((child.parent, child.reason), (Some(3), Reason::Crash));
    assert!(
        plans(node, &["--target-gtid", &first.gtid], &first.gtids).await,
        "what was before is on the path still"
    );
    assert_recovers(node, "put-back", &["--latest"], &fourth).await;

    // Twice within a second: nothing but the content tells the first binlogs apart.
    const RESET: &str = "RESET BINARY LOGS AND GTIDS";
    let snapshots = node.archive().snapshots().await.unwrap();
    let snapshots = snapshots.iter().filter(|s| s.state == SnapshotState::Complete).count();
    shard.primary.server.execute(&[RESET, INSERT, RESET, INSERT]).await;
    node.wait_snapshots(snapshots + 1).await;
    let fifth = moment_on(&shard.primary.server, INSERT).await;
    eventually("the new history is on the path", async || {
        plans(node, &["--latest"], &fifth.gtids).await
    })
    .await;
    let root = timelines(node).await.pop().unwrap();
    assert_eq!((root.parent, root.reason, root.adopted), (None, Reason::Reset, true));
    assert_recovers(node, "reset", &["--latest"], &fifth).await;
    shard.primary.stop_agent().await;
}
