//! `prune` and what lies in EC2: nothing is orphaned wherever it dies, nothing of others goes, and no record looks usable whose snapshots went.

use std::{collections::BTreeSet, fs, path::Path, process::Stdio, sync::Arc, time::Duration};

use aws_sdk_ec2::{
    config::{BehaviorVersion, Credentials, Region, SharedCredentialsProvider},
    types::Tag,
};
use mysql_pitr::{
    archive::{
        keys,
        records::{FORMAT_VERSION, Lease, LeasedPart},
    },
    retention::{
        apply::{Applied, apply},
        holdings::Holdings,
        lease::Held,
        plan::plan,
        rules::Rules,
    },
    support::{
        clock::{US_PER_S, now_us},
        progress::Progress,
    },
    volume::{
        cloud::{Cloud, OPERATION_TAG},
        ebs::{EbsOptions, open_with},
        marks,
    },
};
use tempfile::TempDir;

use crate::support::{
    ebs_archive::{archive_in, subject},
    ebs_stage::{AWAY, HOME, client, volume},
    eventually,
    front::Front,
    made::Made,
    mortal::{Life, Memory, Mortal},
    moto::Moto,
    mysql::copy_folder,
    node::{Node, SHARD, path_text},
};

/// EC2 in two regions.
struct Ec2 {
    moto: Moto,
    front: Front,
    cloud: Arc<dyn Cloud>,
    volumes: [String; 2],
}

impl Ec2 {
    async fn start() -> Ec2 {
        let moto = Moto::start();
        let front = Front::start(&moto.endpoint).await;
        let shared = aws_config::SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(HOME))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new(
                "AKIDTEST", "test", None, None, "test",
            )))
            .build();
        let options = EbsOptions {
            region: Some(HOME.to_owned()),
            endpoint: Some(moto.endpoint.clone()),
            ..EbsOptions::default()
        };
        let client = client(&moto, HOME);
        let volumes = [volume(&client, 8).await, volume(&client, 8).await];
        Ec2 {
            cloud: open_with(options, shared),
            moto,
            front,
            volumes,
        }
    }

    async fn archive(&self) -> Made {
        archive_in(self.cloud.as_ref(), &self.volumes, ["a", "b"]).await
    }

    /// A host that prunes `folder` in a region; `more`: further lines of TOML.
    fn host(&self, folder: &Path, region: &str, more: &str) -> Node {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("prune.toml");
        let text = format!(
            "shard = \"{SHARD}\"\n[store]\nurl = \"file://{}\"\n[retention]\ndaily = 1\nweekly = 0\nmonthly = 0\n\
             [ebs]\nregion = \"{region}\"\nendpoint = \"{}\"\n{more}",
            path_text(folder),
            self.front.endpoint
        );
        fs::write(&config, text).unwrap();
        let environment = [
            ("AWS_ACCESS_KEY_ID", "AKIDTEST"),
            ("AWS_SECRET_ACCESS_KEY", "nobody-prints-this"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ];
        Node {
            dir,
            config,
            archive_dir: folder.to_owned(),
            environment: environment.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
        }
    }

    /// What is there of an operation.
    async fn of(&self, region: &str, id: &str) -> Vec<String> {
        let mut found: Vec<String> = self
            .cloud
            .find(region, id)
            .await
            .unwrap()
            .into_iter()
            .map(|m| m.snapshot_id)
            .collect();
        found.sort();
        found
    }

    async fn counts(&self) -> [usize; 4] {
        let mut counts = [0; 4];
        for (at, (region, id)) in [(HOME, "a"), (HOME, "b"), (AWAY, "a"), (AWAY, "b")].into_iter().enumerate() {
            counts[at] = self.of(region, id).await.len();
        }
        counts
    }
}

fn replica(folder: &Path) -> String {
    format!("[replica]\nurl = \"file://{}\"\n", path_text(folder))
}

fn records(folder: &Path) -> Vec<String> {
    names(&folder.join(SHARD).join("snapshots"))
}

/// Records that are put aside.
fn aside(folder: &Path, region: &str) -> Vec<String> {
    names(&folder.join(SHARD).join("pruned").join(region))
}

fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn binlogs(made: &Made) -> usize {
    fn count(folder: &Path) -> usize {
        let entries = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
        entries
            .map(|p| {
                if p.is_dir() {
                    count(&p)
                } else {
                    usize::from(p.extension().is_none_or(|e| e != "json"))
                }
            })
            .sum()
    }
    count(&made.dir.path().join(SHARD).join("2026"))
}

#[tokio::test]
async fn each_region_deletes_its_own_by_the_leases_in_its_own_bucket() {
    let ec2 = Ec2::start().await;
    let made = ec2.archive().await;
    let far = TempDir::new().unwrap();
    copy_folder(made.dir.path(), far.path());
    // Without the other bucket nobody knows whether the copies' record is there.
    let lonely = ec2.host(made.dir.path(), HOME, "");
    let plan = lonely.ok(&["prune"]).await;
    assert!(
        plan.contains("[replica] has to name the bucket") && !plan.contains("snapshot  a"),
        "{plan}"
    );

    let home = ec2.host(made.dir.path(), HOME, &replica(far.path()));
    let plan = home.ok(&["prune"]).await;
    let of_a = ec2.of(HOME, "a").await;
    assert!(
        plan.contains(&format!("in {HOME} {}, {}): no rule keeps it", of_a[0], of_a[1])) && plan.contains("2 EC2 snapshots"),
        "{plan}"
    );
    let json = home.json(&["prune"]).await;
    assert_eq!(json["plan"]["deletions"][0]["ec2"]["region"], HOME, "{json}");
    assert_eq!(ec2.counts().await, [2, 2, 2, 2], "nothing was said to be deleted");
    assert!(ec2.front.bodies("DeleteSnapshot").is_empty() && records(made.dir.path()).len() == 2);

    let said = home.ok(&["prune", "--yes"]).await;
    assert!(said.contains("and 2 EC2 snapshots"), "{said}");
    assert_eq!(ec2.counts().await, [0, 2, 2, 2]);
    assert_eq!((records(made.dir.path()), binlogs(&made)), (vec!["b.json".to_owned()], 2));
    assert!(aside(made.dir.path(), HOME).is_empty());
    assert!(home.ok(&["prune", "--yes"]).await.contains("there is nothing to delete"));

    // In the other region somebody recovers from it.
    let lease = Lease {
        format: FORMAT_VERSION,
        id: "r".to_owned(),
        created_at_us: now_us(),
        expires_at_us: now_us() + 3600 * US_PER_S,
        needs: Some(LeasedPart {
            snapshot: "a".to_owned(),
            timeline: 1,
            oldest_binlog: None,
        }),
    };
    let key = far.path().join(keys::lease_key(&made.archive.shard, "r"));
    fs::create_dir_all(key.parent().unwrap()).unwrap();
    fs::write(&key, serde_json::to_vec(&lease).unwrap()).unwrap();
    let away = ec2.host(far.path(), AWAY, "");
    away.ok(&["prune", "--yes"]).await;
    assert_eq!(ec2.counts().await, [0, 2, 2, 2]);
    fs::remove_file(&key).unwrap();
    away.ok(&["prune", "--yes"]).await;
    assert_eq!(ec2.counts().await, [0, 2, 0, 2]);
    assert_eq!(records(far.path()), ["b.json"]);
}

/// Nothing in EC2 that nobody would find, and nothing that looks usable and is not.
async fn ensure_consistent(ec2: &Ec2, made: &Made, [old, kept]: [&str; 2], when: &str) {
    let left = ec2.of(HOME, old).await;
    let name = format!("{old}.json");
    let is_recorded = records(made.dir.path()).contains(&name);
    let is_aside = aside(made.dir.path(), HOME).contains(&name);
    assert!(left.is_empty() || is_recorded || is_aside, "{when}: {left:?} are orphaned");
    assert!(
        !is_recorded || left.len() == 2,
        "{when}: its record looks whole, and {left:?} is left"
    );
    assert_eq!(ec2.of(HOME, kept).await.len(), 2, "{when}");
    assert_eq!(ec2.of(AWAY, old).await.len(), 2, "{when}");
}

/// Every request is carried out and not answered, one after the other: what is not carried out is as if the one before had been the last.
#[tokio::test]
async fn killed_at_any_request_to_ec2_the_next_run_ends_it() {
    // A look, two rehearsals, another look and two deletions; more where one is repeated.
    const REQUESTS_MIN: usize = 6;
    let ec2 = Ec2::start().await;
    for request in 0.. {
        let [old, kept] = ["a", "b"].map(|name| format!("{name}{request}"));
        let made = archive_in(ec2.cloud.as_ref(), &ec2.volumes, [&old, &kept]).await;
        let far = TempDir::new().unwrap();
        copy_folder(made.dir.path(), far.path());
        let host = ec2.host(made.dir.path(), HOME, &replica(far.path()));
        ec2.front.halt(request, true);
        let mut command = host.command(&["prune", "--yes"]);
        let command = command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let is_halted = tokio::select! {
            status = child.wait() => {
                assert!(status.unwrap().success());
                false
            }
            () = ec2.front.halted() => true,
        };
        if is_halted {
            child.kill().await.unwrap();
        }
        ec2.front.go_on();
        let when = format!("killed at request {request}");
        ensure_consistent(&ec2, &made, [&old, &kept], &when).await;
        if is_halted {
            host.ok(&["prune", "--yes"]).await;
            ensure_consistent(&ec2, &made, [&old, &kept], &when).await;
        }
        assert!(ec2.of(HOME, &old).await.is_empty(), "{when}");
        assert_eq!(records(made.dir.path()), [format!("{kept}.json")], "{when}");
        assert!(aside(made.dir.path(), HOME).is_empty(), "{when}");
        if !is_halted {
            assert!(request >= REQUESTS_MIN, "it ended after {request} requests");
            break;
        }
    }
}

#[tokio::test]
async fn what_is_held_denied_or_not_ours_stays_and_is_named() {
    let ec2 = Ec2::start().await;
    let made = ec2.archive().await;
    let far = TempDir::new().unwrap();
    copy_folder(made.dir.path(), far.path());
    let host = ec2.host(made.dir.path(), HOME, &replica(far.path()));

    // Nobody may look: nothing goes, and what it needs stays.
    ec2.front.deny("DescribeSnapshots");
    let e = host.fails(&["prune", "--yes"]).await;
    assert!(
        e.contains("cannot be seen what EC2 has of them") && e.contains("ec2:DescribeSnapshots"),
        "{e}"
    );
    ec2.front.allow("DescribeSnapshots");
    assert_eq!((records(made.dir.path()).len(), binlogs(&made)), (2, 4));

    // Nobody may delete: the snapshot stays as it is, with its binlogs.
    ec2.front.deny("DeleteSnapshot");
    let output = host.run(&["prune", "--yes"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        !output.status.success() && said.contains("REFUSED  a: ec2:DeleteSnapshot of snap-"),
        "{said}"
    );
    assert_eq!((records(made.dir.path()).len(), binlogs(&made)), (2, 4));
    assert!(aside(made.dir.path(), HOME).is_empty());
    ec2.front.allow("DeleteSnapshot");

    // Somebody has given one of its ids to something else.
    let of_a = ec2.of(HOME, "a").await;
    let tag = |value: &str| Tag::builder().key(OPERATION_TAG).value(value).build();
    let client = client(&ec2.moto, HOME);
    client
        .create_tags()
        .resources(&of_a[0])
        .tags(tag("mine"))
        .send()
        .await
        .unwrap();
    let said = host.ok(&["prune", "--yes"]).await;
    assert!(
        said.contains(&format!("{} in {HOME} bears the tags of something else", of_a[0])),
        "{said}"
    );
    assert_eq!(ec2.of(HOME, "a").await, of_a[1..]);
    assert_eq!(records(made.dir.path()).len(), 2);
    client.create_tags().resources(&of_a[0]).tags(tag("a")).send().await.unwrap();

    // A copy that somebody made of it, with its tags, is theirs.
    let asked = client
        .copy_snapshot()
        .source_region(HOME)
        .source_snapshot_id(&of_a[0])
        .description("before the upgrade");
    let theirs = asked.send().await.unwrap().snapshot_id.unwrap();
    let tags = subject(&made, "a", "vol-1").tags;
    let tags: Vec<Tag> = tags
        .into_iter()
        .map(|(k, v)| Tag::builder().key(k).value(v).build())
        .collect();
    client
        .create_tags()
        .resources(&theirs)
        .set_tags(Some(tags))
        .send()
        .await
        .unwrap();

    // An image needs it: no recovery finds it any more, and a later run ends it.
    ec2.front
        .refuse("DeleteSnapshot", "InvalidSnapshot.InUse", "it is in use by ami-1");
    let said = host.ok(&["prune", "--yes"]).await;
    for id in &of_a {
        assert!(
            said.contains(&format!(
                "LOCKED   a: {id} is locked: ec2:DeleteSnapshot of {id} in {HOME} failed"
            )),
            "{said}"
        );
    }
    assert_eq!(
        (records(made.dir.path()), aside(made.dir.path(), HOME)),
        (vec!["b.json".to_owned()], vec!["a.json".to_owned()])
    );
    ec2.front.allow("DeleteSnapshot");
    // Meanwhile somebody deleted one.
    client.delete_snapshot().snapshot_id(&of_a[1]).send().await.unwrap();
    let said = host.ok(&["prune", "--yes"]).await;
    assert!(
        said.contains("its record is put aside") && said.contains("and 1 EC2 snapshot"),
        "{said}"
    );
    assert!(aside(made.dir.path(), HOME).is_empty());
    assert_eq!(ec2.of(HOME, "a").await, [theirs]);
}

/// One run that lives for so many deeds; whether it came to its end.
async fn run(made: &Made, far: &Made, ec2: &Arc<Memory>, deeds: usize) -> bool {
    let rules = Rules {
        daily: 1,
        weekly: 0,
        monthly: 0,
        diverged: Duration::from_hours(24),
        segments_grace: Duration::from_hours(1),
        orphans_grace: Duration::from_hours(24),
    };
    let life = Life::of(deeds);
    let cloud = Mortal {
        of: ec2.clone(),
        life: life.clone(),
    };
    let mut archive = made.archive.clone();
    archive.store = Arc::new(Mortal {
        of: made.archive.store.clone(),
        life,
    });
    let holdings = Holdings::of(&archive).await.unwrap().beside(&far.archive).await;
    let holdings = holdings.in_ec2(&archive, &cloud).await;
    let planned = plan(&archive.shard, &holdings, &rules, now_us()).unwrap();
    let seen = holdings.ec2.is_ok();
    let mut applied = Applied::default();
    let done = apply(&archive, &planned, Some(&cloud), &mut applied, &Progress::silent()).await;
    // What EC2 does not answer ends nothing but what needs it.
    seen && done.is_ok() && applied.refused.is_empty()
}

#[tokio::test]
async fn dying_after_any_deed_leaves_what_the_next_run_ends() {
    let mut deaths = 0;
    for deeds in 0.. {
        let ec2 = Arc::new(Memory::default());
        let maker = Mortal {
            of: ec2.clone(),
            life: Life::of(usize::MAX),
        };
        let made = archive_in(&maker, &["vol-1".to_owned(), "vol-2".to_owned()], ["a", "b"]).await;
        let far = Made::new();
        copy_folder(made.dir.path(), far.dir.path());
        let check = || {
            let there: BTreeSet<String> = ec2
                .those(HOME, |_| true)
                .into_iter()
                .map(|m| m.tags[OPERATION_TAG].clone())
                .collect();
            let (records, aside) = (records(made.dir.path()), aside(made.dir.path(), HOME));
            for id in &there {
                let name = format!("{id}.json");
                assert!(
                    records.contains(&name) || aside.contains(&name),
                    "after {deeds}: {id} is orphaned"
                );
            }
            for record in &records {
                let id = record.trim_end_matches(".json");
                assert_eq!(
                    ec2.those(HOME, |m| marks::bears(m, SHARD, id)).len(),
                    2,
                    "after {deeds}: {id} looks whole"
                );
            }
            assert_eq!(
                ec2.those(AWAY, |_| true).len(),
                4,
                "after {deeds}: the other region's are its own"
            );
        };
        let ended = run(&made, &far, &ec2, deeds).await;
        check();
        assert!(run(&made, &far, &ec2, usize::MAX).await, "after {deeds}");
        check();
        assert_eq!(records(made.dir.path()), ["b.json"], "after {deeds}");
        assert_eq!(ec2.those(HOME, |_| true).len(), 2, "after {deeds}");
        assert!(aside(made.dir.path(), HOME).is_empty(), "after {deeds}");
        if ended {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 10, "only {deaths} deaths");
}

/// A recovery that had found the record before it was put aside begins while the run is between the record and its snapshots.
#[tokio::test]
async fn a_recovery_that_found_the_record_keeps_its_snapshots() {
    let ec2 = Ec2::start().await;
    let made = ec2.archive().await;
    let far = TempDir::new().unwrap();
    copy_folder(made.dir.path(), far.path());
    let host = ec2.host(made.dir.path(), HOME, &replica(far.path()));
    // Asked whether it may delete the last one, EC2 is slow to answer.
    const LOOK_AND_ONE_REHEARSAL: usize = 2;
    ec2.front.halt(LOOK_AND_ONE_REHEARSAL, true);
    let mut command = host.command(&["prune", "--yes"]);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    ec2.front.halted().await;
    let lease = Held::take(&made.archive).await.unwrap();
    let needs = LeasedPart {
        snapshot: "a".to_owned(),
        timeline: 1,
        oldest_binlog: None,
    };
    lease.narrow(needs).await.unwrap();
    ec2.front.go_on();
    let output = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("began meanwhile"), "{said}");
    assert_eq!(ec2.counts().await, [2, 2, 2, 2]);
    let said = host.ok(&["prune", "--yes"]).await;
    assert!(
        said.contains("nothing may go") || said.contains("what it needs stays"),
        "{said}"
    );
    assert_eq!(ec2.counts().await, [2, 2, 2, 2]);
    lease.end().await.unwrap();
    eventually("the lease ends", async || {
        host.ok(&["prune", "--yes"]).await;
        ec2.counts().await == [0, 2, 2, 2]
    })
    .await;
}

/// With the credentials of another account nothing is there, and nothing goes.
#[tokio::test]
async fn another_accounts_ec2_is_not_taken_for_an_empty_one() {
    let ours = Mortal {
        of: Arc::new(Memory::default()),
        life: Life::of(usize::MAX),
    };
    let made = archive_in(&ours, &["vol-1".to_owned(), "vol-2".to_owned()], ["a", "b"]).await;
    let far = Made::new();
    copy_folder(made.dir.path(), far.dir.path());
    let is_seen = run(&made, &far, &Arc::new(Memory::default()), usize::MAX).await;
    assert!(!is_seen, "another account's EC2 was believed");
    assert_eq!((records(made.dir.path()).len(), binlogs(&made)), (2, 4));
    assert!(run(&made, &far, &ours.of, usize::MAX).await);
    assert_eq!(records(made.dir.path()), ["b.json"]);
}
