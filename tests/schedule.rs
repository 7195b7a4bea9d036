//! Snapshots by the schedule: one for each run, never two at a time, and one for all that were missed.

use std::{fs, time::Duration};

use crate::support::{eventually, mysql::Server, node::Node, only_at};
use mysql_pitr::{
    archive::records::{Snapshot, SnapshotState},
    snapshot::schedule::Schedule,
    support::clock::{US_PER_S, now_us},
};

const OFF: &str = "schedule = \"off\"";
const EVERY_FEW_SECONDS: &str = "*/2 * * * * *";

async fn complete(node: &Node) -> Vec<Snapshot> {
    let mut snapshots = node.archive().snapshots().await.unwrap();
    assert!(snapshots.iter().all(|s| s.state != SnapshotState::Failed), "{snapshots:?}");
    snapshots.retain(|s| s.state == SnapshotState::Complete);
    snapshots
}

#[tokio::test]
async fn runs_are_served_one_after_the_other_and_missed_ones_once() {
    let server = Server::start(&[]).await;
    let node = Node::new(&server, "");
    node.reconfigure(OFF, &format!("schedule = \"{EVERY_FEW_SECONDS}\""));
    let agent = node.agent();
    server
        .execute(&["CREATE DATABASE shop", "CREATE TABLE shop.t (id INT PRIMARY KEY)"])
        .await;
    node.wait_snapshots(4).await;
    agent.assert_quiet();
    agent.kill().await;

    let taken = complete(&node).await;
    let schedule = Schedule::parse(EVERY_FEW_SECONDS, "UTC", Duration::ZERO).unwrap();
    for pair in taken.windows(2) {
        let (earlier, later) = (&pair[0], &pair[1]);
        assert!(Some(later.started_at_us) >= earlier.finished_at_us, "two at a time: {pair:?}");
        let run = schedule.next_after(earlier.started_at_us).unwrap();
        assert!(later.started_at_us >= run, "no run lies between: {pair:?}");
    }

    // A second in which no agent ran. The one that was killed may have left a snapshot half done.
    let missed = (now_us() / US_PER_S + 1) * US_PER_S;
    eventually("the run is missed", async || now_us() > missed + US_PER_S).await;
    node.reconfigure(EVERY_FEW_SECONDS, &only_at(missed));
    let before = taken.len();
    let agent = node.agent();
    node.wait_snapshots(before + 1).await;
    let made_up = complete(&node).await.pop().unwrap();
    assert!(made_up.started_at_us > missed);
    assert!(agent.log().contains("a snapshot is due by the schedule"));
    // Whoever takes this one, one after the other, would have taken a second one for the schedule first.
    node.ok(&["snapshot"]).await;
    node.ok(&["snapshot"]).await;
    assert_eq!(complete(&node).await.len(), before + 3);
    agent.stop().await;

    // A run that a snapshot follows, whoever asked for it, is served: this agent has nothing to make up.
    fs::remove_file(node.dir.path().join("agent.log")).unwrap();
    let agent = node.agent();
    // Before that, the command would take the snapshot itself.
    eventually("the agent runs", async || agent.log().contains("the agent runs")).await;
    node.ok(&["snapshot"]).await;
    node.ok(&["snapshot"]).await;
    assert_eq!(complete(&node).await.len(), before + 5);
    assert!(!agent.log().contains("is due by the schedule"), "{}", agent.log());
}
