//! Plans over histories that no server wrote: targets, stitching, gaps, damage, and what may be left out. The timelines' records are
//! written as agents of recovered or promoted servers would claim them.

use std::time::Instant;

use crate::support::{
    golden::assert_error,
    made::{Made, at, end_of, gtid, gtids, server},
    node::peak_memory_bytes,
};
use mysql_pitr::{
    binlog::gtid::{Gtid, GtidSet},
    recover::{
        plan::Request,
        target::{Position, Target},
    },
};

fn one(gtid: Gtid) -> GtidSet {
    [gtid].into_iter().collect()
}

fn none() -> GtidSet {
    GtidSet::new()
}

fn latest() -> Request {
    Request::new(Target::Latest)
}

fn time(second: i64) -> Request {
    Request::new(Target::Time(at(second)))
}

fn possible(request: Request) -> Request {
    Request {
        latest_possible: true,
        ..request
    }
}

/// `first..=last` of a server, each committed at ten times its number.
fn run(of: u128, first: u64, last: u64) -> Vec<(Gtid, i64)> {
    (first..=last).map(|n| (gtid(of, n), n as i64 * 10)).collect()
}

/// One server, three binlogs of ten: 1 to 10 and 11 to 20 sealed, 21 to 30 in segments; a snapshot of 1 to 5.
fn simple() -> Made {
    let made = Made::new();
    made.timeline(1, None, 1, none(), none());
    made.snapshot("a", 1, 1, gtids(1, 1, 5), 55);
    made.sealed(1, 1, 1, none(), &run(1, 1, 10));
    made.sealed(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    made.tail(1, 1, 3, gtids(1, 1, 20), &run(1, 21, 30));
    made
}

async fn leads_to(made: &Made, request: Request, expected: &GtidSet) -> mysql_pitr::recover::plan::Plan {
    let plan = made.plan(&request).await.unwrap_or_else(|e| panic!("{request:?}: {e:#}"));
    assert_eq!(plan.target_gtids, *expected, "{request:?}");
    plan
}

async fn refused(made: &Made, case: &str, request: Request) {
    let names = [(made.dir.path().to_str().unwrap(), "/ARCHIVE")];
    assert_error(case, &made.refusal(&request).await, &names);
}

#[tokio::test]
async fn every_kind_of_target_leads_to_its_set() {
    let made = simple();
    leads_to(&made, latest(), &gtids(1, 1, 30)).await;
    leads_to(&made, time(150), &gtids(1, 1, 15)).await;
    leads_to(&made, time(159), &gtids(1, 1, 15)).await;
    let exact = |exclusive| {
        Request::new(Target::Gtid {
            gtid: gtid(1, 17),
            exclusive,
        })
    };
    leads_to(&made, exact(false), &gtids(1, 1, 17)).await;
    leads_to(&made, exact(true), &gtids(1, 1, 16)).await;
    for last in [7, 10, 15, 20, 25, 30] {
        let plan = leads_to(&made, Request::new(Target::Set(gtids(1, 1, last))), &gtids(1, 1, last)).await;
        assert_eq!(plan.last.unwrap().gtid, gtid(1, last));
        assert_eq!(plan.warnings, [""; 0]);
    }
    let holed = gtids(1, 1, 12).union(&gtids(1, 14, 22));
    let plan = leads_to(&made, Request::new(Target::Set(holed.clone())), &holed).await;
    assert!(
        plan.warnings[0].contains(&one(gtid(1, 13)).to_string()),
        "{:?}",
        plan.warnings
    );
}

fn position(binlog: &str, position: u64) -> Request {
    Request::new(Target::Position(Position {
        binlog: binlog.to_owned(),
        position,
        server: None,
    }))
}

#[tokio::test]
async fn positions_end_after_what_ends_at_or_before_them() {
    let made = simple();
    let end = end_of(&run(1, 11, 20), 3);
    leads_to(&made, position("binlog.000002", end), &gtids(1, 1, 14)).await;
    leads_to(&made, position("binlog.000002", end - 1), &gtids(1, 1, 13)).await;
    leads_to(&made, position("binlog.000002", end + 1), &gtids(1, 1, 14)).await;
    leads_to(&made, position("binlog.000002", 4), &gtids(1, 1, 10)).await;
    let end = end_of(&run(1, 21, 30), 9);
    leads_to(&made, position("binlog.000003", end), &gtids(1, 1, 30)).await;
    refused(
        &made,
        "position: behind the end of a sealed binlog",
        position("binlog.000002", 1 << 40),
    )
    .await;
    refused(
        &made,
        "position: behind what was archived",
        position("binlog.000003", 1 << 40),
    )
    .await;
    refused(&made, "position: of an unknown binlog", position("binlog.000009", 4)).await;
    let plan = leads_to(&made, possible(position("binlog.000003", 1 << 40)), &gtids(1, 1, 30)).await;
    assert!(plan.shortfall.unwrap().contains("only up to"));
}

/// Two servers of one path with a binlog of one name: a failover from server 1 to server 2.
fn failed_over() -> Made {
    let made = Made::new();
    made.timeline(1, None, 1, none(), none());
    made.timeline(2, Some(1), 2, gtids(1, 1, 15), none());
    made.snapshot("a", 1, 1, gtids(1, 1, 5), 55);
    made.sealed(1, 1, 1, none(), &run(1, 1, 10));
    // 16 to 20 were written by the old primary only.
    made.tail(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    let new: Vec<(Gtid, i64)> = (1..=5).map(|n| (gtid(2, n), 200 + n as i64)).collect();
    made.sealed(2, 2, 1, gtids(1, 1, 15), &new);
    made
}

#[tokio::test]
async fn a_name_that_two_servers_use_needs_a_server_or_a_key() {
    let made = failed_over();
    refused(&made, "position: an ambiguous name", position("binlog.000001", 4)).await;
    let of = |number| {
        Request::new(Target::Position(Position {
            binlog: "binlog.000001".to_owned(),
            position: 4,
            server: Some(server(number)),
        }))
    };
    leads_to(&made, of(2), &gtids(1, 1, 15)).await;
    let key = made.sealed(2, 2, 7, gtids(1, 1, 15).union(&gtids(2, 1, 5)), &run(2, 6, 9));
    for name in [key.clone(), format!("{key}.json")] {
        leads_to(
            &made,
            position(&name, end_of(&run(2, 6, 9), 1)),
            &gtids(1, 1, 15).union(&gtids(2, 1, 7)),
        )
        .await;
    }
    // What the successor did not inherit never happened.
    refused(
        &made,
        "position: in what was not inherited",
        position("binlog.000002", end_of(&run(1, 11, 20), 7)),
    )
    .await;
}

/// i13: only the first timeline shipped 11 to 15; the second goes on from there, and 16 to 20 never happened.
#[tokio::test]
async fn i13_a_path_crosses_failovers_and_leaves_out_what_was_not_inherited() {
    let made = failed_over();
    let plan = leads_to(&made, latest(), &gtids(1, 1, 15).union(&gtids(2, 1, 5))).await;
    let legs: Vec<(u32, u64)> = plan
        .legs
        .iter()
        .map(|leg| (leg.binlog.opening.timeline, leg.wanted.count()))
        .collect();
    assert_eq!(legs, [(1, 5), (1, 5), (2, 5)]);
    assert_eq!(plan.diverged.len(), 1);
    assert_eq!((plan.diverged[0].timeline, plan.diverged[0].on_path), (1, true));
    // The other branch is still there.
    let other = Request {
        timeline: Some(1),
        ..latest()
    };
    let plan = leads_to(&made, other, &gtids(1, 1, 20)).await;
    assert_eq!(plan.diverged[0].timeline, 2);
    assert_eq!(plan.diverged[0].gtids, gtids(2, 1, 5));

    // A third server takes over, and then the first one, rebuilt, does: it takes up the numbers that it lost.
    made.timeline(3, Some(2), 3, gtids(1, 1, 15).union(&gtids(2, 1, 3)), none());
    made.tail(3, 3, 1, gtids(1, 1, 15).union(&gtids(2, 1, 3)), &[(gtid(3, 1), 300)]);
    let held = gtids(1, 1, 15).union(&gtids(2, 1, 3)).union(&gtids(3, 1, 1));
    made.timeline(4, Some(3), 1, held.clone(), none());
    made.tail(4, 1, 5, held.clone(), &[(gtid(1, 16), 400), (gtid(1, 17), 401)]);
    let plan = leads_to(&made, latest(), &held.union(&gtids(1, 16, 17))).await;
    let last = plan.legs.last().unwrap();
    assert_eq!((last.binlog.opening.timeline, last.wanted.clone()), (4, gtids(1, 16, 17)));
    let first = plan.legs.iter().filter(|leg| leg.binlog.opening.timeline == 1);
    let from_first = first.fold(none(), |sum, leg| sum.union(&leg.wanted));
    assert_eq!(
        from_first,
        gtids(1, 6, 15),
        "16 and 17 are the returned server's, not its old ones"
    );
}

/// Binlog 2 was purged before it was shipped; the snapshot "b" holds exactly what was executed before binlog 3.
fn purged() -> Made {
    let made = Made::new();
    made.timeline(1, None, 1, none(), none());
    made.snapshot("a", 1, 1, gtids(1, 1, 5), 55);
    made.snapshot("b", 1, 1, gtids(1, 1, 20), 205);
    made.sealed(1, 1, 1, none(), &run(1, 1, 10));
    made.sealed(1, 1, 3, gtids(1, 1, 20), &run(1, 21, 30));
    made.tail(1, 1, 4, gtids(1, 1, 30), &run(1, 31, 33));
    made
}

/// i8: a moment inside a purge gap is not answered with the state behind the gap.
#[tokio::test]
async fn i8_a_time_inside_a_gap_is_not_answered_with_a_later_state() {
    let made = purged();
    refused(&made, "target: a time inside a gap", time(150)).await;
    // Up to the last one before the gap nothing is missing, and once the snapshot was complete, it says what there was.
    leads_to(&made, time(99), &gtids(1, 1, 9)).await;
    leads_to(&made, time(206), &gtids(1, 1, 20)).await;
    leads_to(&made, time(210), &gtids(1, 1, 21)).await;
    let plan = leads_to(&made, latest(), &gtids(1, 1, 33)).await;
    assert_eq!(plan.snapshot.id, "b");
    assert_eq!(plan.gaps[0].gtids, gtids(1, 11, 20));
    let plan = leads_to(&made, possible(time(150)), &gtids(1, 1, 10)).await;
    assert!(plan.shortfall.unwrap().contains("a gap at"));
}

/// i8: without a snapshot behind it a gap ends what can be recovered, and less is only given where less will do.
#[tokio::test]
async fn i8_the_latest_possible_state_is_the_one_before_the_gap() {
    let made = purged();
    made.remove(&format!("{}/snapshots/b.json", crate::support::node::SHARD));
    refused(&made, "gap: no snapshot behind it", latest()).await;
    for request in [latest(), time(300), Request::new(Target::Set(gtids(1, 1, 25)))] {
        let plan = leads_to(&made, possible(request), &gtids(1, 1, 10)).await;
        assert!(plan.shortfall.unwrap().contains("the archive has a gap"));
        assert_eq!(plan.last.unwrap().gtid, gtid(1, 10));
    }
    // Beyond the archive's end: everything.
    let made = simple();
    refused(&made, "target: a transaction that is not archived yet", gtid_request(31)).await;
    leads_to(&made, possible(gtid_request(31)), &gtids(1, 1, 30)).await;
    let plan = leads_to(&made, possible(time(9999)), &gtids(1, 1, 30)).await;
    assert!(plan.shortfall.unwrap().contains("the archive ends at"));
    // Nobody knows where in the history another server's transaction would be.
    let unknown = Request::new(Target::Gtid {
        gtid: gtid(77, 1),
        exclusive: false,
    });
    assert!(made.plan(&possible(unknown)).await.is_err());
}

fn gtid_request(gno: u64) -> Request {
    Request::new(Target::Gtid {
        gtid: gtid(1, gno),
        exclusive: false,
    })
}

#[tokio::test]
async fn sets_that_cannot_be_are_refused_with_the_difference() {
    let made = simple();
    let set = |set| Request::new(Target::Set(set));
    refused(
        &made,
        "target set: unknown transactions",
        set(gtids(1, 1, 32).union(&gtids(7, 1, 2))),
    )
    .await;
    refused(&made, "target set: less than every snapshot", set(gtids(1, 2, 10))).await;
    leads_to(&made, possible(set(gtids(1, 1, 32))), &gtids(1, 1, 30)).await;
}

/// A recovery left 8 out and went on as timeline 2; snapshots of timeline 1 that hold 8 would bring back what it did.
#[tokio::test]
async fn i13_what_was_left_out_does_not_come_back() {
    let made = simple();
    made.snapshot("b", 1, 1, gtids(1, 1, 10), 105);
    let skip = Request {
        skip: one(gtid(1, 8)),
        ..gtid_request(20)
    };
    let plan = leads_to(&made, skip, &gtids(1, 1, 20)).await;
    assert_eq!(plan.snapshot.id, "a", "the newer one holds what is to be left out");
    assert_eq!((&plan.skipped, &plan.newly_skipped), (&one(gtid(1, 8)), &one(gtid(1, 8))));
    assert!(plan.passed_over[0].reason.contains("what is to be left out"));

    made.timeline(2, Some(1), 2, gtids(1, 1, 20), one(gtid(1, 8)));
    let next: Vec<(Gtid, i64)> = (1..=5).map(|n| (gtid(2, n), 300 + n as i64)).collect();
    made.tail(2, 2, 1, gtids(1, 1, 20), &next);
    let everything = gtids(1, 1, 20).union(&gtids(2, 1, 5));
    let plan = leads_to(&made, latest(), &everything).await;
    assert_eq!(plan.snapshot.id, "a");
    assert_eq!((plan.skipped, plan.newly_skipped), (one(gtid(1, 8)), none()));
    // A snapshot of the recovered server holds it as the empty transaction that it is.
    made.snapshot("c", 2, 2, gtids(1, 1, 20).union(&gtids(2, 1, 2)), 303);
    assert_eq!(leads_to(&made, latest(), &everything).await.snapshot.id, "c");

    let refuse = |gno, request| Request {
        skip: one(gtid(1, gno)),
        timeline: Some(1),
        ..request
    };
    refused(&made, "skip: in every snapshot", refuse(3, latest())).await;
    refused(&made, "skip: not part of the target", refuse(25, gtid_request(20))).await;
}

/// A record that is not needed is a warning; one that is, is the error.
#[tokio::test]
async fn damage_stops_only_what_needs_it() {
    let made = simple();
    let shard = crate::support::node::SHARD;
    made.snapshot("b", 1, 1, gtids(1, 1, 10), 105);
    made.damage(&format!("{shard}/snapshots/b.json"));
    let plan = leads_to(&made, latest(), &gtids(1, 1, 30)).await;
    assert!(plan.warnings[0].contains("snapshots/b.json"), "{:?}", plan.warnings);

    // A copy under another name, or another shard's.
    made.snapshot("c", 1, 1, gtids(1, 1, 10), 105);
    let copy = std::fs::read(made.dir.path().join(format!("{shard}/snapshots/c.json"))).unwrap();
    std::fs::write(made.dir.path().join(format!("{shard}/snapshots/d.json")), copy).unwrap();
    let plan = leads_to(&made, latest(), &gtids(1, 1, 30)).await;
    assert_eq!(plan.snapshot.id, "c");
    assert!(plan.warnings.iter().any(|w| w.contains("belongs under another key")));
    made.remove(&format!("{shard}/snapshots/c/datadir.tar.zst"));
    let plan = leads_to(&made, latest(), &gtids(1, 1, 30)).await;
    assert_eq!(plan.snapshot.id, "a", "the newer one's data is gone");

    let made = simple();
    let second = made.sealed(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    made.damage(&format!("{second}.json"));
    leads_to(&made, gtid_request(7), &gtids(1, 1, 7)).await;
    refused(&made, "manifest: damaged, and needed", latest()).await;
    // With its segments still there, the binlog is read from them.
    made.tail(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    let plan = leads_to(&made, latest(), &gtids(1, 1, 30)).await;
    assert!(
        plan.warnings[0].contains("is read from its segments instead"),
        "{:?}",
        plan.warnings
    );

    let made = simple();
    let second = made.sealed(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    made.remove(&second);
    refused(&made, "sealed binlog: missing, without segments", latest()).await;
    leads_to(&made, possible(latest()), &gtids(1, 1, 10)).await;
    made.tail(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    leads_to(&made, latest(), &gtids(1, 1, 30)).await;

    // A hole in the tail that a killed server left, with a successor behind it.
    let made = failed_over();
    let segments = made.tail(1, 1, 2, gtids(1, 1, 10), &run(1, 11, 20));
    made.remove(&segments[2]);
    refused(&made, "segment: missing in the middle of the path", latest()).await;
    leads_to(&made, gtid_request(12), &gtids(1, 1, 12)).await;
    let plan = leads_to(&made, possible(latest()), &gtids(1, 1, 12)).await;
    let why = plan.shortfall.unwrap();
    assert!(
        why.contains("lacks its bytes from") && why.contains(segments[3].as_str()),
        "{why}"
    );
}

/// A later timeline that cannot be read may be the current one; an older one off the path is nobody's business.
#[tokio::test]
async fn a_timeline_that_cannot_be_read_matters_where_it_may_be_the_current_one() {
    let made = failed_over();
    made.timeline(3, Some(1), 9, gtids(1, 1, 3), none());
    made.damage(&format!("{}/timelines/00000003.json", crate::support::node::SHARD));
    refused(&made, "timeline: the newest is damaged", latest()).await;
    let chosen = Request {
        timeline: Some(2),
        ..latest()
    };
    leads_to(&made, chosen, &gtids(1, 1, 15).union(&gtids(2, 1, 5))).await;
}

/// 10,000 manifests are planned over within 3 s and 64 MiB. Here, unoptimised and beside other tests, only that it is not far off.
#[tokio::test]
async fn ten_thousand_manifests_are_planned_over_quickly() {
    const MANIFESTS: u32 = 10_000;
    const PER_BINLOG: u64 = 3;
    const PATIENCE_S: f64 = 30.0;
    const MEMORY_BYTES_MAX: u64 = 64 << 20;
    let made = Made::new();
    made.timeline(1, None, 1, none(), none());
    made.snapshot("a", 1, 1, gtids(1, 1, 3), 35);
    for n in 0..MANIFESTS {
        let first = u64::from(n) * PER_BINLOG + 1;
        made.sealed(1, 1, n + 1, gtids(1, 1, first - 1), &run(1, first, first + PER_BINLOG - 1));
    }
    let began = Instant::now();
    let all = u64::from(MANIFESTS) * PER_BINLOG;
    let plan = leads_to(&made, latest(), &gtids(1, 1, all)).await;
    let took = began.elapsed().as_secs_f64();
    assert!(took < PATIENCE_S, "{took} s");
    let config = made.dir.path().join("mysql-pitr.toml");
    let text = format!(
        "shard = \"{}\"\n[store]\nurl = \"file://{}\"\n[mysql]\nsocket = \"/nowhere\"\nuser = \"nobody\"\n",
        crate::support::node::SHARD,
        made.dir.path().display()
    );
    std::fs::write(&config, text).unwrap();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_mysql-pitr"))
        .args([
            "--config",
            config.to_str().unwrap(),
            "recover",
            "--latest",
            "--dry-run",
            "--json",
        ])
        .env("MYSQL_PITR_MYSQL_PASSWORD", "none")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    // The plan is printed before the process ends, and more than fits into a pipe: the process waits, and holds all that it needed.
    let mut out = child.stdout.take().unwrap();
    let mut json = vec![0; 1];
    tokio::io::AsyncReadExt::read_exact(&mut out, &mut json).await.unwrap();
    let peak = peak_memory_bytes(child.id().unwrap()).unwrap();
    tokio::io::AsyncReadExt::read_to_end(&mut out, &mut json).await.unwrap();
    assert!(child.wait().await.unwrap().success());
    let summary: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(summary["binlogs"].as_array().unwrap().len(), plan.legs.len());
    println!("planned over {MANIFESTS} manifests in {took:.2} s, the program held {peak} bytes");
    assert!(peak < MEMORY_BYTES_MAX, "{peak} bytes");
}
