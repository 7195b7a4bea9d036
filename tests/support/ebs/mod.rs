//! A stand-in for EC2 with its EBS volumes, at the level of blocks: no AWS account is needed, and none is reached.
//!
//! The conversation is moto's, two regions of it. What moto only claims is done beside: a snapshot is a copy of the volume's blocks at that
//! instant (`pool`), a volume from a snapshot is another, an attached volume is a block device of this machine, found by a link of
//! the name that udev would give it. A crash-consistent copy is thus one, and nothing that a test assumes.

mod ec2;
mod imds;
mod pool;
pub mod xml;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use rand::{SeedableRng, rngs::StdRng};
use tokio::{net::TcpListener, sync::oneshot};

use self::{
    ec2::Endpoint,
    pool::{run, text},
};
use super::moto::Moto;

pub use self::pool::Pool;

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
    /// Those that were done.
    done: Vec<(String, String)>,
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

/// EC2. Dropped, nothing of it is left.
pub struct Ec2 {
    pub endpoint: String,
    servers: Mutex<Vec<Served>>,
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
            servers: Mutex::new(vec![server]),
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

    /// How often a region was asked for anything.
    pub fn asked(&self, region: &str) -> usize {
        self.shared.world().asked.iter().filter(|(r, _)| r == region).count()
    }

    /// How often an action was done in a region.
    pub fn done(&self, region: &str, action: &str) -> usize {
        let world = self.shared.world();
        world.done.iter().filter(|(r, a)| r == region && a == action).count()
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
        let (metadata, server) = imds::serve_for(&machine);
        machine.metadata = metadata;
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).push(server);
        self.shared.world().machines.insert(id, machine.clone());
        machine
    }

    /// A new volume with an XFS, mounted at `mount_point`, which is made. Returns its id.
    pub async fn mounted_volume(&self, machine: &Machine, gib: u64, mount_point: &Path) -> String {
        let (region, zone) = (&machine.region, &machine.zone);
        let answer = self
            .ask(
                region,
                &format!("Action=CreateVolume&Size={gib}&AvailabilityZone={zone}&VolumeType=gp3"),
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

    /// Snapshots of all of a machine's volumes. Returns each volume's with the volume.
    pub async fn snapshots(&self, machine: &Machine) -> BTreeMap<String, String> {
        let ask = format!(
            "Action=CreateSnapshots&InstanceSpecification.InstanceId={}&InstanceSpecification.ExcludeBootVolume=true",
            machine.id
        );
        let answer = self.ask(&machine.region, &ask).await;
        let ids = |i: &&str| Some((xml::text(i, "volumeId")?.to_owned(), xml::text(i, "snapshotId")?.to_owned()));
        xml::items(&answer, "snapshotSet").iter().filter_map(ids).collect()
    }

    /// The copy of a snapshot in another region.
    pub async fn copy_snapshot(&self, id: &str, from: &str, to: &str) -> String {
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
