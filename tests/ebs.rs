//! Snapshots of EBS volumes: a real server under load, a real agent, moto for EC2 in two regions, and something in between that makes trouble.

use aws_sdk_ec2::types::Snapshot;
use tokio::task::JoinHandle;

use crate::support::{
    ebs_stage::{
        AWAY, HOME as HOME_REGION, Stage, can_write, client, load, metadata_service, mount_point, prepare, set, stage, tag,
        volume,
    },
    eventually,
    golden::{assert_error, assert_text},
    moto::Moto,
    mysql::{Server, free_port},
    node::{Node, path_text},
    orchestrator::{FakeOrchestrator, HOST},
};

#[tokio::test]
async fn a_locked_server_s_volume_is_complete_in_two_regions() {
    let port = free_port();
    let options = format!("dr_kms_key = \"alias/dr\"\ntags = {{ team = \"dba\" }}\n[http]\nlisten = \"127.0.0.1:{port}\"");
    let stage = stage(&options, "tables").await;
    let writers = load(&stage.server);
    let agent = stage.agent().await;
    let id = stage.ask().await;
    let records = stage
        .wait("the snapshot is in both regions", |s| {
            s.iter().any(|s| s["id"] == *id && s["step"] == "copied")
        })
        .await;
    writers.iter().for_each(JoinHandle::abort);
    agent.assert_quiet();
    let record = records.iter().find(|s| s["id"] == *id).unwrap();
    assert_eq!(record["state"], "complete");
    // Nobody wrote while it was begun.
    assert_eq!(record["gtids_before"], record["gtids_after"]);
    assert!(record["locked_us"].as_u64().unwrap() > 0, "{record}");
    let volume = &record["volumes"][0];
    let datadir = stage.server.datadir.canonicalize().unwrap();
    let holds = volume["holds"].as_array().unwrap();
    for role in ["datadir", "binlog", "redo", "undo"] {
        assert!(
            holds.iter().any(|h| h["role"] == role && h["path"] == path_text(&datadir)),
            "{role}: {volume}"
        );
    }
    assert_eq!(
        (volume["volume_id"].as_str(), volume["size_gib"].as_u64()),
        (Some(stage.volumes[0].as_str()), Some(8))
    );
    assert_eq!(
        record["variables"]["datadir"].as_str().unwrap().trim_end_matches('/'),
        path_text(&stage.server.datadir)
    );
    assert!(record["variables"]["log_bin_basename"].is_string());

    let of_it =
        |all: Vec<Snapshot>| -> Vec<Snapshot> { all.into_iter().filter(|s| tag(s, "mysql-pitr:snapshot") == id).collect() };
    let (home, away) = (of_it(stage.ec2(HOME_REGION).await), of_it(stage.ec2(AWAY).await));
    assert_eq!((home.len(), away.len()), (1, 1));
    let uuid = stage.server.uuid().await.to_string();
    for (key, value) in [
        ("mysql-pitr:shard", "test-shard"),
        ("mysql-pitr:server", &uuid),
        ("team", "dba"),
    ] {
        assert_eq!((tag(&home[0], key), tag(&away[0], key)), (value, value), "{key}");
    }
    assert_eq!(tag(&home[0], "mysql-pitr:origin"), "request");
    assert!(tag(&home[0], "mysql-pitr:record").ends_with(&format!("test-shard/snapshots/{id}.json")));
    assert_eq!(Some(tag(&away[0], "mysql-pitr:copy-of")), home[0].snapshot_id());
    let asked = stage.front.bodies("CopySnapshot").pop().unwrap();
    assert!(
        asked.contains("KmsKeyId=alias%2Fdr") && asked.contains("Encrypted=true"),
        "{asked}"
    );
    assert!(
        asked.contains("PresignedUrl=") && asked.contains("SourceRegion=eu-west-1"),
        "{asked}"
    );
    stage.assert_nothing_is_orphaned().await;
    let listing = stage.node.ok(&["list"]).await;
    assert!(
        listing.contains("EBS volumes of 8 GiB, complete in eu-west-1, eu-central-1"),
        "{listing}"
    );

    let url = format!("http://127.0.0.1:{port}/metrics");
    let metric = async |name: &str| -> Option<f64> {
        let text = reqwest::get(&url).await.unwrap().text().await.unwrap();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map(|value| value.parse().unwrap())
    };
    assert!(metric("mysql_pitr_snapshot_lock_seconds").await.unwrap() > 0.0);
    for part in ["lock", "flush logs", "sync", "create", "thaw"] {
        let name = format!("mysql_pitr_snapshot_lock_part_seconds{{part=\"{part}\"}}");
        assert!(metric(&name).await.is_some(), "{name}");
    }
    eventually("no copy is missing", async || {
        metric("mysql_pitr_snapshot_copies_failed").await == Some(0.0)
    })
    .await;
    // Without its copy a snapshot is complete, and the metric says what is missing.
    stage.front.deny("CopySnapshot");
    let id = stage.ask().await;
    stage
        .wait("the snapshot is complete", |s| {
            s.iter().any(|s| s["id"] == *id && s["state"] == "complete")
        })
        .await;
    eventually("a copy is missing", async || {
        metric("mysql_pitr_snapshot_copies_failed").await == Some(1.0)
    })
    .await;
    stage.assert_nothing_is_orphaned().await;
    agent.stop().await;
}

/// Binlogs on another volume belong to it, and nothing else of the machine does.
#[tokio::test]
async fn several_volumes_are_taken_in_one_request() {
    let Ok(logs) = tempfile::tempdir_in("/dev/shm") else {
        return crate::support::skipped("/dev/shm is not there to be another file system");
    };
    let basename = logs.path().join("binlog");
    let (server, moto) = (
        Server::start(&[&format!("--log-bin={}", basename.display())]).await,
        Moto::start(),
    );
    prepare(&server).await;
    let (data_at, logs_at) = (mount_point(&server.datadir), mount_point(logs.path()));
    if data_at == logs_at {
        return crate::support::skipped("all folders are on one file system");
    }
    let ec2 = client(&moto, HOME_REGION);
    let run = ec2
        .run_instances()
        .image_id("ami-12c6146b")
        .min_count(1)
        .max_count(1)
        .send()
        .await
        .unwrap();
    let instance = run.instances()[0].instance_id().unwrap().to_owned();
    let volumes = [volume(&ec2, 8).await, volume(&ec2, 2).await, volume(&ec2, 1).await];
    for (volume, device) in volumes.iter().zip(["/dev/sdf", "/dev/sdg", "/dev/sdh"]) {
        let attach = ec2.attach_volume().volume_id(volume).instance_id(&instance).device(device);
        attach.send().await.unwrap();
    }
    let named = format!(
        "\"{}={}\", \"{}={}\"",
        data_at.display(),
        volumes[0],
        logs_at.display(),
        volumes[1]
    );
    let mut stage = set(server, moto, volumes.to_vec(), &named, "", "tables", Some(logs)).await;

    // The metadata service says which machine this is: first another one, which then names volumes that are not its own.
    let metadata = metadata_service("i-0aaaaaaaaaaaaaaaa").await;
    let alone = std::mem::take(&mut stage.node.environment);
    stage.node.environment = alone
        .iter()
        .filter(|(k, _)| k != "AWS_EC2_METADATA_DISABLED")
        .cloned()
        .collect();
    stage
        .node
        .environment
        .push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata));
    let said = stage.node.fails(&["snapshot"]).await;
    assert_error(
        "snapshot: the volume is another machine's",
        &said,
        &[(instance.as_str(), "INSTANCE"), (&volumes[0], "VOLUME")],
    );
    let metadata = metadata_service(&instance).await;
    stage.node.environment.pop();
    stage
        .node
        .environment
        .push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".to_owned(), metadata));
    for action in ["DescribeInstances", "CreateSnapshots"] {
        stage.front.deny(action);
        let said = stage.node.fails(&["snapshot"]).await;
        stage.front.allow(action);
        let names = [
            (instance.as_str(), "INSTANCE"),
            (&volumes[0], "VOLUME"),
            (&volumes[1], "VOLUME"),
        ];
        assert_error(&format!("snapshot: ec2:{action} is denied"), &said, &names);
        can_write(&stage.server).await;
    }
    let agent = stage.agent().await;
    let records = stage.records().await;
    let records = &records[records.len() - 1..];
    let of_record = records[0]["volumes"].as_array().unwrap();
    assert_eq!(of_record.len(), 2, "{records:?}");
    let binlogs = of_record.iter().find(|v| v["volume_id"] == *volumes[1]).unwrap();
    assert!(
        binlogs["holds"].as_array().unwrap().iter().all(|h| h["role"] == "binlog"),
        "{binlogs}"
    );
    assert_eq!(stage.front.calls("CreateSnapshot"), 0);
    let asked = stage.front.bodies("CreateSnapshots").pop().unwrap();
    assert!(
        asked.contains("ExcludeBootVolume=true") && asked.contains(&volumes[2]),
        "{asked}"
    );
    assert!(!asked.contains(&volumes[0]) && !asked.contains(&volumes[1]), "{asked}");
    // moto makes one of the excluded volume all the same: it is part of nothing, and goes.
    stage.assert_nothing_is_orphaned().await;
    assert_eq!(stage.ec2(HOME_REGION).await.len(), 2);
    agent.stop().await;
}

/// A snapshot that `asker` wants, and that EC2 has made without an answer: the server is locked.
async fn begin_unanswered(stage: &Stage, asker: &Node) -> String {
    stage.front.withhold("CreateSnapshot");
    let calls = stage.front.calls("CreateSnapshot");
    let id = asker.ok(&["snapshot", "--no-wait"]).await.trim().to_owned();
    eventually("the snapshot is asked for", async || {
        stage.front.calls("CreateSnapshot") > calls
    })
    .await;
    id
}

/// The agent is killed where it hurts, and its successor goes on.
#[tokio::test]
async fn an_agent_that_dies_anywhere_is_continued() {
    let stage = stage("", "tables").await;
    let agent = stage.agent().await;

    // Under the lock, with the snapshot made and not answered: the lock ends with the agent, and what was made is deleted.
    let lost = begin_unanswered(&stage, &stage.node).await;
    agent.kill().await;
    can_write(&stage.server).await;
    stage.front.answer("CreateSnapshot");
    let agent = stage.node.agent();
    stage
        .wait("the lost one is given up", |s| {
            s.iter().any(|s| s["id"] == *lost && s["state"] == "failed")
        })
        .await;
    eventually("what was made is deleted", async || stage.ec2(HOME_REGION).await.len() == 1).await;

    // While EC2 works on it.
    stage.front.set_pending(HOME_REGION, true);
    let slow = stage.ask().await;
    stage
        .wait("it is begun", |s| {
            s.iter().any(|s| s["id"] == *slow && s["step"] == "created")
        })
        .await;
    can_write(&stage.server).await;
    agent.kill().await;
    let agent = stage.node.agent();
    stage.front.withhold("CopySnapshot");
    let copies = stage.front.calls("CopySnapshot");
    stage.front.set_pending(HOME_REGION, false);

    // While the copy is asked for: it was made, and is found.
    eventually("the copy is asked for", async || stage.front.calls("CopySnapshot") > copies).await;
    agent.kill().await;
    stage.front.answer("CopySnapshot");
    let agent = stage.node.agent();
    stage
        .wait("it is in both regions", |s| {
            s.iter().any(|s| s["id"] == *slow && s["step"] == "copied")
        })
        .await;
    assert_eq!(stage.front.calls("CopySnapshot"), copies + 1, "it was not made twice");
    stage.assert_nothing_is_orphaned().await;
    agent.stop().await;
}

#[tokio::test]
async fn what_is_not_answered_under_the_lock_does_not_count() {
    let stage = stage("create_timeout = \"1s\"", "tables").await;
    stage.front.withhold("CreateSnapshot");
    let said = stage.node.fails(&["snapshot"]).await;
    can_write(&stage.server).await;
    assert_error("snapshot: EC2 does not answer under the lock", &said, &stage.names());
    let records = stage.records().await;
    assert_eq!(
        (records[0]["state"].as_str(), records[0]["step"].as_str()),
        (Some("failed"), Some("deleting"))
    );
    stage.front.answer("CreateSnapshot");
    // Whoever comes next deletes what turned up late, and takes its own.
    let agent = stage.agent().await;
    eventually("nothing is left of the first", async || {
        stage.ec2(HOME_REGION).await.len() == 1
    })
    .await;
    stage.assert_nothing_is_orphaned().await;
    agent.stop().await;
}

/// Each refusal names the action, the object and what to do; the server is unlocked after each.
#[tokio::test]
async fn refusals_name_the_action() {
    let stage = stage("", "tables").await;
    let all = stage.node.ok(&["check"]).await;
    for line in [
        "OK       lock privileges",
        "OK       volumes",
        "OK       create snapshots     allowed, 8 GiB in eu-west-1",
    ] {
        assert!(all.contains(line), "{line} is not in\n{all}");
    }
    stage.front.deny("CreateSnapshot");
    let said = stage.node.run(&["check"]).await;
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains("FAILED   create snapshots") && said.contains("allow ec2:CreateSnapshot"),
        "{said}"
    );
    for action in ["DescribeVolumes", "CreateSnapshot", "DescribeSnapshots"] {
        stage.front.deny(action);
        let said = stage.node.fails(&["snapshot"]).await;
        stage.front.allow(action);
        assert!(!said.contains("secret") && !said.contains("nobody-prints-this"), "{said}");
        let id = stage
            .records()
            .await
            .last()
            .map(|s| s["id"].as_str().unwrap().to_owned())
            .unwrap_or_default();
        let mut names = stage.names();
        names.push((&id, "SNAPSHOT"));
        assert_error(&format!("snapshot: ec2:{action} is denied"), &said, &names);
        can_write(&stage.server).await;
    }
    for (code, message) in [
        (
            "RequestExpired",
            "Request has expired. Timestamp date is 2020-01-01T00:00:00Z.",
        ),
        ("ExpiredToken", "The security token included in the request is expired"),
        ("InvalidVolume.NotFound", "The volume does not exist."),
        ("InvalidKMSKey.InvalidState", "The KMS key provided is in an incorrect state."),
    ] {
        stage.front.refuse("CreateSnapshot", code, message);
        let said = stage.node.fails(&["snapshot"]).await;
        assert_error(&format!("snapshot: {code}"), &said, &stage.names());
        can_write(&stage.server).await;
    }
    // Throttled once it is tried again, unlocked meanwhile. The local snapshot is complete without its copy.
    let rate = "The maximum per volume CreateSnapshot request rate has been exceeded.";
    let calls = stage.front.calls("CreateSnapshot");
    stage
        .front
        .refuse_times("CreateSnapshot", "SnapshotCreationPerVolumeRateExceeded", rate, Some(1));
    stage.front.deny("CopySnapshot");
    let said = stage.node.ok(&["snapshot"]).await;
    let id = stage.records().await.last().unwrap()["id"].as_str().unwrap().to_owned();
    assert_text("snapshot: ec2:CopySnapshot is denied", &said, &[(&id, "SNAPSHOT")]);
    assert_eq!(stage.front.calls("CreateSnapshot"), calls + 2);
    let records = stage.records().await;
    let copies = &records.last().unwrap()["volumes"][0]["copies"];
    assert_eq!(
        (copies[0]["state"].as_str(), copies[1]["state"].as_str()),
        (Some("complete"), Some("failed"))
    );
    assert!(
        copies[1]["failure"].as_str().unwrap().contains("allow ec2:CopySnapshot"),
        "{copies}"
    );
}

/// With writes going on the role is watched all the same.
#[tokio::test]
async fn a_server_that_loses_its_role_gives_the_snapshot_up() {
    let stage = stage("", "instance").await;
    let agent = stage.agent().await;
    let id = begin_unanswered(&stage, &stage.node).await;
    can_write(&stage.server).await;
    stage.server.execute(&["SET GLOBAL read_only = ON"]).await;
    let records = stage
        .wait("it is given up", |s| {
            s.iter().any(|s| s["id"] == *id && s["state"] == "failed")
        })
        .await;
    let record = records.iter().find(|s| s["id"] == *id).unwrap();
    assert!(
        record["failure"]
            .as_str()
            .unwrap()
            .contains("the server's part in the shard changed"),
        "{record}"
    );
    stage.front.answer("CreateSnapshot");
    stage.server.execute(&["SET GLOBAL read_only = OFF"]).await;
    eventually("what was made is deleted", async || stage.ec2(HOME_REGION).await.len() == 1).await;
    agent.stop().await;
}

/// As in production: the candidate is locked, beside its parallel appliers, while the primary is written to. A server that is a candidate no
/// more gives up what it has begun.
#[tokio::test]
async fn a_candidate_takes_it_while_it_is_one() {
    let primary = Server::start(&[]).await;
    prepare(&primary).await;
    let mut replica = primary.start_clone(&["--server-id=2", "--replica-parallel-workers=4"]).await;
    replica.replicate_from(&primary).await;
    let fake = FakeOrchestrator::start(&[primary.port, replica.port]).await;
    let (port, moto) = (replica.port, Moto::start());
    fake.candidate(port, true);
    let orchestrator = |port: u16| {
        let url = fake.url();
        format!("[orchestrator]\nurls = [\"{url}\"]\ninstance = \"{HOST}:{port}\"\npoll_interval = \"1s\"\ntimeout = \"500ms\"\n")
    };
    let shipping = Node::new(&primary, &orchestrator(primary.port));
    let shipper = shipping.agent();
    shipping.wait_shipped(&primary).await;
    let volumes = vec![volume(&client(&moto, HOME_REGION), 8).await];
    let options = orchestrator(port);
    let named = format!("\"{}\"", volumes[0]);
    let mut stage = set(replica, moto, volumes, &named, &options, "tables", None).await;
    stage
        .node
        .reconfigure(path_text(&stage.node.archive_dir), path_text(&shipping.archive_dir));
    stage.node.archive_dir = shipping.archive_dir.clone();
    let writers = load(&primary);
    let agent = stage.agent().await;
    let id = shipping.ok(&["snapshot", "--no-wait"]).await.trim().to_owned();
    let records = stage
        .wait("the candidate takes it", |s| {
            s.iter().any(|s| s["id"] == *id && s["step"] == "copied")
        })
        .await;
    let record = records.iter().find(|s| s["id"] == *id).unwrap();
    assert_eq!(record["server_uuid"], stage.server.uuid().await.to_string());
    assert_eq!(record["gtids_before"], record["gtids_after"], "its appliers stood still");
    assert!(record.get("errant").is_none(), "{record}");

    let id = begin_unanswered(&stage, &shipping).await;
    fake.candidate(port, false);
    let records = stage
        .wait("it is given up", |s| {
            s.iter().any(|s| s["id"] == *id && s["state"] == "failed")
        })
        .await;
    let record = records.iter().find(|s| s["id"] == *id).unwrap();
    assert!(
        record["failure"]
            .as_str()
            .unwrap()
            .contains("the server's part in the shard changed"),
        "{record}"
    );
    writers.iter().for_each(JoinHandle::abort);
    // It is not locked any more: it catches up.
    stage.server.wait_executed(&primary.gtid_executed().await).await;
    stage.front.answer("CreateSnapshot");
    fake.candidate(port, true);
    let complete = records.iter().filter(|s| s["state"] == "complete").count();
    eventually("what was made is deleted", async || {
        stage.ec2(HOME_REGION).await.len() == complete
    })
    .await;
    agent.stop().await;
    shipper.stop().await;
}

/// A snapshot that EC2 could not make is none.
#[tokio::test]
async fn what_ec2_fails_to_make_is_deleted() {
    let stage = stage("", "tables").await;
    stage.front.set_failing(HOME_REGION, "Given key ID is not accessible");
    stage.front.deny("DeleteSnapshot");
    let said = stage.node.fails(&["snapshot"]).await;
    assert_error("snapshot: EC2 fails to make it", &said, &stage.names());
    let denied = "ec2:DeleteSnapshot of snap-";
    assert!(
        said.contains("what was made of it is not deleted yet") && said.contains(denied),
        "{said}"
    );
    assert_eq!(stage.ec2(HOME_REGION).await.len(), 1);
    // Without RELOAD nothing is begun.
    stage
        .server
        .execute(&["REVOKE RELOAD ON *.* FROM mysql_pitr@localhost"])
        .await;
    let said = stage.node.fails(&["snapshot"]).await;
    assert_error("snapshot: the account may not lock the server", &said, &[]);
    stage.server.execute(&["GRANT RELOAD ON *.* TO mysql_pitr@localhost"]).await;
    // The agent deletes what is left of it.
    stage.front.allow("DeleteSnapshot");
    let agent = stage.node.agent();
    eventually("it is deleted", async || {
        stage.front.calls("DeleteSnapshot") > 0 && stage.ec2(HOME_REGION).await.is_empty()
    })
    .await;
    agent.stop().await;
}
