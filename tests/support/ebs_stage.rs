//! A server whose files lie on EBS volumes, as moto has them, and an agent that takes snapshots of those.

use std::path::{Path, PathBuf};

use aws_sdk_ec2::{
    Client,
    config::{BehaviorVersion, Credentials, Region},
    types::{Filter, Snapshot},
};
use mysql_pitr::volume::ebs::mounts::{Roots, mount_of, mounts};
use serde_json::Value;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    ebs::{Machine, metadata_router},
    eventually,
    front::Front,
    moto::{Moto, NO_METADATA, environment},
    mysql::Server,
    node::{Agent, Node},
};

pub const HOME: &str = "eu-west-1";
pub const AWAY: &str = "eu-central-1";

/// A server with its data on `volumes`, and EC2.
pub struct Stage {
    pub server: Server,
    pub node: Node,
    pub front: Front,
    pub moto: Moto,
    pub volumes: Vec<String>,
    /// Of the binlogs, where they lie elsewhere.
    _logs: Option<tempfile::TempDir>,
}

pub fn client(moto: &Moto, region: &str) -> Client {
    let config = aws_sdk_ec2::config::Builder::new()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(&moto.endpoint)
        .region(Region::new(region.to_owned()))
        .credentials_provider(Credentials::new("AKIDTEST", "test", None, None, "test"))
        .build();
    Client::from_conf(config)
}

pub fn mount_point(path: &Path) -> PathBuf {
    let all = mounts(&Roots::default()).unwrap();
    mount_of(&all, &path.canonicalize().unwrap()).unwrap().mount_point.clone()
}

pub async fn volume(ec2: &Client, gib: i32) -> String {
    let made = ec2
        .create_volume()
        .availability_zone(format!("{HOME}a"))
        .size(gib)
        .send()
        .await;
    made.unwrap().volume_id.unwrap()
}

/// `options` go into the [ebs] section, `lock` into [snapshot].
pub async fn stage(options: &str, lock: &str) -> Stage {
    let (server, moto) = (Server::start(&[]).await, Moto::start());
    prepare(&server).await;
    let volumes = vec![volume(&client(&moto, HOME), 8).await];
    let named = format!("\"{}\"", volumes[0]);
    set(server, moto, volumes, &named, options, lock, None).await
}

/// What the stage needs of its server.
pub async fn prepare(server: &Server) {
    server
        .execute(&[
            "CREATE DATABASE d",
            "CREATE TABLE d.t (id INT PRIMARY KEY AUTO_INCREMENT, v VARCHAR(100))",
            "GRANT RELOAD ON *.* TO mysql_pitr@localhost",
        ])
        .await;
}

pub async fn set(
    server: Server,
    moto: Moto,
    volumes: Vec<String>,
    named: &str,
    options: &str,
    lock: &str,
    logs: Option<tempfile::TempDir>,
) -> Stage {
    let front = Front::start(&moto.endpoint).await;
    // A disk that other tests keep busy takes long to sync.
    let patient = [("lock_hold", "200s"), ("create_timeout", "120s")].into_iter();
    let patient = patient.filter(|(key, _)| !options.contains(key));
    let patient: String = patient.map(|(key, value)| format!("{key} = \"{value}\"\n")).collect();
    let ebs = format!(
        "[ebs]\nregion = \"{HOME}\"\nendpoint = \"{}\"\nvolumes = [{named}]\ndr_region = \"{AWAY}\"\n{patient}{options}\n",
        front.endpoint
    );
    let mut node = Node::new(&server, &ebs);
    node.reconfigure(
        "[snapshot]\n",
        &format!("[snapshot]\nprovider = \"ebs\"\nlock = \"{lock}\"\n"),
    );
    node.environment = environment(NO_METADATA);
    Stage {
        server,
        node,
        front,
        moto,
        volumes,
        _logs: logs,
    }
}

impl Stage {
    /// An agent that has taken the snapshot that begins the window.
    pub async fn agent(&self) -> Agent {
        let agent = self.node.agent();
        self.wait("the first snapshot is complete", |s| ended(s, "copied")).await;
        agent
    }

    pub async fn records(&self) -> Vec<Value> {
        match self.node.json(&["list"]).await {
            Value::Object(listing) => listing["snapshots"].as_array().unwrap().clone(),
            other => panic!("{other}"),
        }
    }

    pub async fn wait(&self, what: &str, mut is_so: impl FnMut(&[Value]) -> bool) -> Vec<Value> {
        let mut seen = Vec::new();
        eventually(what, async || {
            seen = self.records().await;
            is_so(&seen)
        })
        .await;
        seen
    }

    /// Of a region, those that mysql-pitr made.
    pub async fn ec2(&self, region: &str) -> Vec<Snapshot> {
        let filter = Filter::builder().name("tag-key").values("mysql-pitr:snapshot").build();
        let answer = client(&self.moto, region)
            .describe_snapshots()
            .owner_ids("self")
            .filters(filter)
            .send()
            .await;
        answer.unwrap().snapshots.unwrap_or_default()
    }

    /// Asks for a snapshot, and does not wait.
    pub async fn ask(&self) -> String {
        self.node.ok(&["snapshot", "--no-wait"]).await.trim().to_owned()
    }

    /// Nothing in EC2 that no complete snapshot names, and nothing missing.
    pub async fn assert_nothing_is_orphaned(&self) {
        let records = self.records().await;
        for region in [HOME, AWAY] {
            let copies = records.iter().filter(|s| s["state"] == "complete");
            let copies = copies
                .flat_map(|s| s["volumes"].as_array().unwrap())
                .flat_map(|v| v["copies"].as_array().unwrap());
            let mut named: Vec<&str> = copies
                .filter(|c| c["region"] == region)
                .filter_map(|c| c["snapshot_id"].as_str())
                .collect();
            named.sort_unstable();
            let there = self.ec2(region).await;
            let mut there: Vec<&str> = there.iter().filter_map(|s| s.snapshot_id()).collect();
            there.sort_unstable();
            assert_eq!(there, named, "{region}: {records:?}");
        }
    }

    pub fn names(&self) -> Vec<(&str, &str)> {
        vec![(&self.volumes[0], "VOLUME"), (&self.front.endpoint, "ENDPOINT")]
    }
}

pub fn ended(records: &[Value], step: &str) -> bool {
    records.last().is_some_and(|s| s["step"] == step)
}

pub fn tag<'s>(snapshot: &'s Snapshot, key: &str) -> &'s str {
    snapshot
        .tags()
        .iter()
        .find(|t| t.key() == Some(key))
        .and_then(|t| t.value())
        .unwrap_or_default()
}

/// An instance's metadata service; its URL.
pub async fn metadata_service(instance: &str) -> String {
    let machine = Machine {
        id: instance.to_owned(),
        region: HOME.to_owned(),
        zone: format!("{HOME}a"),
        device_dir: PathBuf::new(),
        metadata: String::new(),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, metadata_router(machine)).await.unwrap() });
    url
}

/// Writers that never stop.
pub fn load(server: &Server) -> Vec<JoinHandle<()>> {
    let writer = |endpoint| async move {
        let mut session = mysql_pitr::mysql::query::Session::connect(&endpoint).await.unwrap();
        while session.execute("INSERT INTO d.t (v) VALUES (UUID())").await.is_ok() {}
    };
    (0..2).map(|_| tokio::spawn(writer(server.root_endpoint()))).collect()
}

pub async fn can_write(server: &Server) {
    server.execute(&["INSERT INTO d.t (v) VALUES ('still alive')"]).await;
}
