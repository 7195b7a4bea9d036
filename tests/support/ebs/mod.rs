//! A stand-in for EC2 with its EBS volumes, at the level of blocks: no AWS account is needed, and none is reached.
//!
//! The conversation is moto's, two regions of it. What moto only claims is done beside: a snapshot is a copy of the volume's blocks at that
//! instant (`pool`), a volume from a snapshot is another, an attached volume is a block device of this machine, found by a link of
//! the name that udev would give it. A crash-consistent copy is thus one, and nothing that a test assumes.

mod ec2;
mod imds;
mod pool;
mod xml;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use mysql_pitr::archive::records::{CopyState, RegionalCopy, VolumeSnapshot};
use rand::{SeedableRng, rngs::StdRng};
use tokio::{net::TcpListener, sync::oneshot};

use self::{
    ec2::Endpoint,
    pool::{run, text},
};
use super::{
    moto::{Moto, environment},
    node::path_text,
};

pub use self::{ec2::Form, imds::router as metadata_router, pool::Pool};

/// Of every volume that a server is put on.
pub const VOLUME_GIB: u32 = 2;

/// One of those that moto knows from the start.
const IMAGE: &str = "ami-12c6146b";
/// As udev names what an NVMe volume is found by, before the volume's id without its dash.
const LINK_PREFIX: &str = "nvme-Amazon_Elastic_Block_Store_";

/// What the stand-in does otherwise than moto.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// Regions that do not answer.
    pub dead: BTreeSet<String>,
    /// Actions that the role may not do.
    pub denied: BTreeSet<String>,
    /// How often something new is looked at before it is what it will be.
    pub looks_until_ready: u32,
    /// Volumes that are made come out broken.
    pub broken_volumes: bool,
    /// What is done, and never answered.
    pub unanswered: BTreeSet<String>,
    /// Attached volumes never appear as devices.
    pub no_devices: bool,
    /// Results on a page.
    pub page_items: Option<usize>,
    /// By which seed requests are throttled, fail, or lose their answers: each of them one in so many.
    pub noise: Option<Noise>,
}

#[derive(Debug)]
pub struct Noise {
    rng: StdRng,
    one_in: u32,
    faults_in_a_row: u32,
}

impl Noise {
    pub fn new(seed: u64, one_in: u32) -> Noise {
        Noise {
            rng: StdRng::seed_from_u64(seed),
            one_in,
            faults_in_a_row: 0,
        }
    }
}

/// A volume as the stand-in knows it.
#[derive(Debug)]
struct Volume {
    zone: String,
    attached: Option<Attached>,
    looks_left: u32,
}

#[derive(Debug)]
struct Attached {
    device: PathBuf,
    link: PathBuf,
}

#[derive(Debug, Default)]
struct World {
    behaviour: Behaviour,
    /// By instance id.
    machines: BTreeMap<String, Machine>,
    volumes: BTreeMap<String, Volume>,
    /// Looks left until a snapshot is complete.
    snapshots: BTreeMap<String, u32>,
    /// What a client token was answered with.
    answers: BTreeMap<String, String>,
    /// Every request that came, as region and action.
    asked: Vec<(String, String)>,
    /// Those that were done, with what they said.
    done: Vec<(String, String, Form)>,
}

/// An instance.
#[derive(Debug, Clone)]
pub struct Machine {
    pub id: String,
    pub region: String,
    pub zone: String,
    /// Where its volumes are found by their ids.
    pub device_dir: PathBuf,
    /// Its metadata service.
    pub metadata: String,
}

impl Machine {
    /// Of whatever runs on it.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment(("AWS_EC2_METADATA_SERVICE_ENDPOINT", &self.metadata))
    }
}

/// EC2. Dropped, nothing of it is left.
pub struct Ec2 {
    pub endpoint: String,
    _server: Served,
    /// The metadata services, by region.
    metadata: Mutex<Vec<(String, Served)>>,
    shared: Arc<Shared>,
    pub moto: Moto,
}

struct Shared {
    moto: String,
    http: reqwest::Client,
    pool: Pool,
    world: Mutex<World>,
    /// One request at a time, as moto has it.
    turn: tokio::sync::Mutex<()>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ec2 {
    /// None, and it is said, where this machine lets nobody make volumes.
    pub fn start() -> Option<Ec2> {
        let pool = Pool::make()?;
        let moto = Moto::start();
        let shared = Arc::new(Shared {
            moto: moto.endpoint.clone(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            pool,
            world: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        });
        let (endpoint, server) = serve(ec2::router(Endpoint(shared.clone())));
        Some(Ec2 {
            endpoint,
            _server: server,
            metadata: Mutex::default(),
            shared,
            moto,
        })
    }

    /// Whatever a test mounts is to be mounted below it.
    pub fn root(&self) -> &Path {
        self.shared.pool.root()
    }

    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.world().behaviour);
    }

    /// From now on nobody answers there: neither EC2 nor the metadata service of any machine.
    pub fn end_region(&self, region: &str) {
        self.behave(|b| {
            b.dead.insert(region.to_owned());
        });
        self.metadata().retain(|(of, _)| of != region);
    }

    fn metadata(&self) -> MutexGuard<'_, Vec<(String, Served)>> {
        self.metadata.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often a region was asked for anything.
    pub fn asked(&self, region: &str) -> usize {
        self.shared.world().asked.iter().filter(|(r, _)| r == region).count()
    }

    /// How often an action was done in a region.
    pub fn done(&self, region: &str, action: &str) -> usize {
        self.forms(region, action).len()
    }

    /// What the requests said that were done there.
    pub fn forms(&self, region: &str, action: &str) -> Vec<Form> {
        let world = self.shared.world();
        let done = world.done.iter().filter(|(r, a, _)| r == region && a == action);
        done.map(|(_, _, form)| form.clone()).collect()
    }

    /// The region's volumes that have blocks.
    pub fn volumes(&self, region: &str) -> Vec<String> {
        let world = self.shared.world();
        let here = world.volumes.iter().filter(|(_, v)| v.zone.starts_with(region));
        here.map(|(id, _)| id.clone()).collect()
    }

    /// What is mounted below [`Ec2::root`].
    pub fn mounts(&self) -> Vec<PathBuf> {
        self.shared.pool.mounts()
    }

    /// A new instance, e.g. in zone `eu-west-1a`.
    pub async fn machine(&self, zone: &str) -> Machine {
        let region = zone[..zone.len() - 1].to_owned();
        let answer = self
            .ask(
                &region,
                &format!("Action=RunInstances&ImageId={IMAGE}&MinCount=1&MaxCount=1&Placement.AvailabilityZone={zone}"),
            )
            .await;
        let id = xml::text(&answer, "instanceId")
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned();
        let device_dir = self.root().join(format!("devices-{id}"));
        fs::create_dir(&device_dir).unwrap();
        let mut machine = Machine {
            id: id.clone(),
            region,
            zone: zone.to_owned(),
            device_dir,
            metadata: String::new(),
        };
        let (metadata, server) = serve(imds::router(machine.clone()));
        machine.metadata = metadata;
        self.metadata().push((machine.region.clone(), server));
        self.shared.world().machines.insert(id, machine.clone());
        machine
    }

    /// New volumes, mounted below [`Ec2::root`] by these names: their ids, with where.
    pub async fn mounted_volumes(&self, machine: &Machine, names: &[&str]) -> BTreeMap<String, PathBuf> {
        let mut volumes = BTreeMap::new();
        for name in names {
            let mount_point = self.root().join(name);
            volumes.insert(self.mounted_volume(machine, &mount_point).await, mount_point);
        }
        volumes
    }

    /// With an XFS. The mount point is made.
    async fn mounted_volume(&self, machine: &Machine, mount_point: &Path) -> String {
        let (region, zone) = (&machine.region, &machine.zone);
        let answer = self
            .ask(
                region,
                &format!("Action=CreateVolume&Size={VOLUME_GIB}&AvailabilityZone={zone}&VolumeType=gp3"),
            )
            .await;
        let id = xml::text(&answer, "volumeId")
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned();
        let count = self.shared.world().volumes.len();
        let name = (b'f' + count as u8) as char;
        self.ask(
            region,
            &format!(
                "Action=AttachVolume&VolumeId={id}&InstanceId={}&Device=%2Fdev%2Fsd{name}",
                machine.id
            ),
        )
        .await;
        let device = machine.device_dir.join(link_name(&id));
        run("mkfs.xfs", &["-q", text(&device)]);
        fs::create_dir_all(mount_point).unwrap();
        run(
            "mount",
            &["-t", "xfs", text(&device.canonicalize().unwrap()), text(mount_point)],
        );
        id
    }

    /// `[ebs]` of a machine's server on these volumes, with copies in `dr_region`. The disk may be busy.
    pub fn section(&self, machine: &Machine, volumes: &BTreeMap<String, PathBuf>, dr_region: &str) -> String {
        let volumes = volumes.iter().map(|(id, at)| format!("\"{}={id}\"", at.display()));
        format!(
            "[ebs]\nregion = \"{}\"\nendpoint = \"{}\"\ndr_region = \"{dr_region}\"\nvolumes = [{}]\nlock_hold = \"200s\"\n\
             create_timeout = \"120s\"\n",
            machine.region,
            self.endpoint,
            volumes.collect::<Vec<_>>().join(", ")
        )
    }

    /// `[recover.volume]` of a recovery on that machine; `options`: further lines.
    pub fn recover_section(&self, machine: &Machine, options: &str) -> String {
        format!(
            "[recover.volume]\nendpoint = \"{}\"\ndevice_dir = \"{}\"\n{options}\n",
            self.endpoint,
            path_text(&machine.device_dir)
        )
    }

    /// Snapshots of a machine's volumes, of one after the other, and their copies in another region, as a record has them: but for what
    /// they hold.
    pub async fn copied(&self, machine: &Machine, volumes: &BTreeMap<String, PathBuf>, to: &str) -> Vec<VolumeSnapshot> {
        let home = &machine.region;
        let taken = self.snapshots(machine).await;
        let mut copied = Vec::new();
        for (id, mount_point) in volumes {
            let here = &taken[id];
            let there = self.copy_snapshot(here, home, to).await;
            copied.push(VolumeSnapshot {
                volume_id: id.clone(),
                mount_point: mount_point.clone(),
                filesystem: "xfs".into(),
                partition: None,
                size_gib: VOLUME_GIB,
                holds: Vec::new(),
                copies: vec![copy(home, here), copy(to, &there)],
            });
        }
        copied
    }

    /// Snapshots of all of a machine's volumes. Returns each volume's with the volume.
    async fn snapshots(&self, machine: &Machine) -> BTreeMap<String, String> {
        let ask = format!(
            "Action=CreateSnapshots&InstanceSpecification.InstanceId={}&InstanceSpecification.ExcludeBootVolume=true",
            machine.id
        );
        let answer = self.ask(&machine.region, &ask).await;
        let ids = |i: &&str| Some((xml::text(i, "volumeId")?.to_owned(), xml::text(i, "snapshotId")?.to_owned()));
        xml::items(&answer, "snapshotSet").iter().filter_map(ids).collect()
    }

    /// The copy of a snapshot in another region.
    async fn copy_snapshot(&self, id: &str, from: &str, to: &str) -> String {
        let answer = self
            .ask(to, &format!("Action=CopySnapshot&SourceRegion={from}&SourceSnapshotId={id}"))
            .await;
        xml::text(&answer, "snapshotId")
            .unwrap_or_else(|| panic!("{answer}"))
            .to_owned()
    }

    /// What an operator asks by other means; it must be done.
    async fn ask(&self, region: &str, form: &str) -> String {
        let request = self.shared.http.post(&self.endpoint);
        let answer = request
            .header("authorization", ec2::authorization(region))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("{form}&Version=2016-11-15"))
            .send()
            .await
            .unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert!(status.is_success(), "{form}: {status} {text}");
        text
    }
}

fn copy(region: &str, snapshot_id: &str) -> RegionalCopy {
    RegionalCopy {
        region: region.to_owned(),
        snapshot_id: Some(snapshot_id.to_owned()),
        state: CopyState::Complete,
        failure: None,
        encrypted: None,
        kms_key: None,
        tried_at_us: None,
    }
}

/// The volumes that a text names, each as often as it does.
pub fn volume_ids(text: &str) -> Vec<String> {
    const PREFIX: &str = "vol-";
    let number = |rest: &str| rest[..rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(rest.len())].to_owned();
    let numbers = text.split(PREFIX).skip(1).map(number).filter(|n| !n.is_empty());
    numbers.map(|n| PREFIX.to_owned() + &n).collect()
}

fn link_name(volume: &str) -> String {
    format!("{LINK_PREFIX}{}", volume.replace('-', ""))
}

/// A server on a thread of its own: a test that waits for a command does not hold it up.
struct Served {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Its URL, and what it lives with.
fn serve(router: axum::Router) -> (String, Served) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener).unwrap();
            tokio::select! {
                served = axum::serve(listener, router).into_future() => served.unwrap(),
                _ = stopped => {}
            }
        });
    });
    let served = Served {
        stop: Some(stop),
        thread: Some(thread),
    };
    (url, served)
}
