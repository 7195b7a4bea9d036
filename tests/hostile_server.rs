//! A server that lies, by seed: whatever it sends is an error or is archived as what it is; never a panic, never memory without a bound,
//! never an object that cannot be read again.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use mysql_pitr::{
    archive::{codec::Codec, listing::Archive, reader::Portions},
    binlog::{
        event::{FormatDescription, MAGIC, kind},
        gtid::{Gtid, GtidSet, Tag},
        splitter::{SplitError, Splitter},
    },
    mysql::{
        dump::{AtEnd, DumpItem},
        query::ServerBinlog,
        server::{BinlogStream, Server, ServerState},
        wire::WireError,
    },
    ship::{Settings, Shipper, Status, catalog::Catalog, standing::Standing},
    support::{clock::WallClock, retry::seed_jitter},
};
use rand::{Rng, SeedableRng, rngs::SmallRng, seq::IndexedRandom};
use support::{
    binlog_writer::{BinlogWriter, event},
    memory_store::MemoryStore,
};
use tokio::{
    sync::{Notify, watch},
    time::{sleep, timeout},
};
use uuid::Uuid;

mod support;

const LIARS: u64 = 200;
/// Virtual.
const PATIENCE: Duration = Duration::from_secs(30);
/// What the archive in memory takes included.
const MEMORY_BYTES_MAX: usize = 96 << 20;
const ITEM_PAUSE: Duration = Duration::from_millis(1);
const NAMES: [&str; 9] = [
    "binlog.000001",
    "binlog.000002",
    "../../escape.000001",
    "a/b.000001",
    "a\0b.000001",
    "",
    ".",
    "binlog.99999999999999999999999",
    "a\nb",
];

/// Counts what is allocated, and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static HELD_MAX: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        HELD_MAX.fetch_max(held, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Debug)]
struct Liar {
    random: Mutex<SmallRng>,
    /// What it says of itself, mostly.
    said: Mutex<Option<ServerState>>,
}

impl Liar {
    fn new(seed: u64) -> Liar {
        Liar {
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            said: Mutex::default(),
        }
    }

    fn roll(&self, of: u32) -> u32 {
        self.random.lock().unwrap().random_range(0..of)
    }

    fn name(&self) -> String {
        let mut random = self.random.lock().unwrap();
        if random.random_bool(0.1) {
            return "x".repeat(300);
        }
        (*NAMES.choose(&mut *random).unwrap()).to_owned()
    }

    fn number(&self) -> u64 {
        *[0, 1, 4, 1 << 31, 1 << 32, i64::MAX as u64, u64::MAX]
            .choose(&mut *self.random.lock().unwrap())
            .unwrap()
    }

    /// A binlog's events, with something wrong about them more often than not.
    fn events(&self) -> Vec<u8> {
        let uuid = Uuid::from_u128(1);
        let mut file = Vec::new();
        BinlogWriter(&mut file).begin(&GtidSet::new());
        for gno in 1..=u64::from(self.roll(4)) {
            BinlogWriter(&mut file).transaction(Gtid::new(uuid, Tag::NONE, gno), 1, &[vec![7; 100]]);
        }
        let mut events = file.split_off(MAGIC.len());
        let mut body: Vec<u8> = (0..self.roll(80)).map(|_| self.roll(256) as u8).collect();
        body.extend(self.number().to_le_bytes());
        body.extend(self.number().to_le_bytes());
        let kinds = [
            kind::GTID,
            kind::GTID_TAGGED,
            kind::ANONYMOUS_GTID,
            kind::PREVIOUS_GTIDS,
            kind::FORMAT_DESCRIPTION,
            kind::TRANSACTION_PAYLOAD,
            kind::TABLE_MAP,
            kind::XA_PREPARE,
            kind::QUERY,
            kind::ROTATE,
        ];
        let odd = event(kinds[self.roll(kinds.len() as u32) as usize], 0, 0, &body);
        match self.roll(6) {
            0 => {}
            // Right checksums around nonsense.
            1 => events.extend(odd),
            2 => events = [odd, events].concat(),
            3 => {
                let at = self.roll(events.len() as u32) as usize;
                events[at] ^= 1 << self.roll(8);
            }
            // A length that nothing follows.
            4 => {
                let mut header = odd;
                header[9..13].copy_from_slice(&(self.number() as u32).to_le_bytes());
                events.extend(header);
            }
            _ => {
                let cut = self.roll(events.len() as u32) as usize;
                events.truncate(cut);
            }
        }
        events
    }
}

#[async_trait]
impl Server for Liar {
    async fn look(&self) -> anyhow::Result<ServerState> {
        if self.roll(4) > 0
            && let Some(said) = &*self.said.lock().unwrap()
        {
            return Ok(said.clone());
        }
        let mut purged = GtidSet::new();
        if self.roll(2) == 0 {
            purged.insert(Gtid::new(Uuid::from_u128(2), Tag::NONE, 9));
        }
        let binlogs = (0..self.roll(4)).map(|_| ServerBinlog {
            name: self.name(),
            bytes: self.number(),
        });
        let state = ServerState {
            server_uuid: Uuid::from_u128(1),
            datadir: PathBuf::from("/nonexistent"),
            gtid_purged: purged,
            binlogs: binlogs.collect(),
            gtid_executed: GtidSet::new(),
        };
        *self.said.lock().unwrap() = Some(state.clone());
        Ok(state)
    }

    async fn dump(&self, name: &str, position: u64, _: AtEnd) -> Result<Box<dyn BinlogStream>, WireError> {
        let seed = self.random.lock().unwrap().random();
        Ok(Box::new(Lies {
            liar: Liar::new(seed),
            first: Some(DumpItem::Binlog {
                name: name.to_owned(),
                position,
            }),
            // Some never end what they began: the rest of one event.
            endless: self.roll(8) == 0,
        }))
    }
}

struct Lies {
    liar: Liar,
    first: Option<DumpItem>,
    endless: bool,
}

#[async_trait]
impl BinlogStream for Lies {
    async fn next(&mut self) -> Result<DumpItem, WireError> {
        sleep(ITEM_PAUSE).await;
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        if self.endless {
            return Ok(match self.liar.roll(4) {
                0 => DumpItem::Bytes {
                    bytes: vec![0xff; 64 << 10].into(),
                    first: false,
                },
                1 => DumpItem::Heartbeat,
                2 => DumpItem::Binlog {
                    name: self.liar.name(),
                    position: 4,
                },
                _ => DumpItem::Format(FormatDescription {
                    server_version: String::new(),
                    checksum: false,
                }),
            });
        }
        Ok(match self.liar.roll(20) {
            0..14 => DumpItem::Bytes {
                bytes: self.liar.events().into(),
                first: true,
            },
            14 => DumpItem::Bytes {
                bytes: Bytes::new(),
                first: false,
            },
            15 | 16 => DumpItem::Binlog {
                name: self.liar.name(),
                position: self.liar.number(),
            },
            17 => DumpItem::Format(FormatDescription {
                server_version: "x".repeat(1000),
                checksum: self.liar.roll(2) == 0,
            }),
            18 => DumpItem::Heartbeat,
            _ => DumpItem::End,
        })
    }
}

/// Returns how many binlogs it made the agent archive.
async fn ship_from_a_liar(seed: u64) -> usize {
    seed_jitter(seed);
    let store = MemoryStore::default();
    let archive = Archive {
        store: Arc::new(store.clone()),
        shard: "liar".to_owned().try_into().unwrap(),
        clock: Arc::new(WallClock),
    };
    let standing = Standing {
        writable: Some(true),
        ..Standing::default()
    };
    let shipper = Shipper {
        ask_again: Arc::new(Notify::new()),
        short_of_disk: watch::channel(false).1,
        archive: archive.clone(),
        server: Arc::new(Liar::new(seed)),
        standing: watch::channel(standing).1,
        catalog: Arc::new(Catalog::open(Path::new(":memory:"))),
        settings: Settings {
            backlog_workers: 2,
            flush_interval: Duration::from_millis(100),
            segment_bytes: 65_536,
            codec: Codec::Zstd,
        },
        status: watch::Sender::new(Status::default()),
        snapshot_wanted: Arc::new(Notify::new()),
    };
    let (_stop, stopped) = watch::channel(false);
    assert!(timeout(PATIENCE, shipper.run(stopped)).await.is_err(), "it gave up");
    for key in store.keys("") {
        assert!(
            key.starts_with("liar/") && !key.contains("escape"),
            "it stored {}",
            key.escape_debug()
        );
    }
    let binlogs = archive.binlogs().await.unwrap();
    for binlog in &binlogs {
        let (mut splitter, mut portions) = (Splitter::new(), Portions::of(&archive, binlog));
        while let Some(bytes) = portions.next().await.unwrap() {
            splitter.push(&bytes, |_| Ok::<(), SplitError>(())).unwrap();
        }
        splitter.finish().unwrap();
    }
    binlogs.len()
}

#[test]
fn a_lying_server_is_an_error_and_never_a_panic() {
    // Tasks that shipping spawns panic by themselves.
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let told = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        told(panic);
    }));
    let before = HELD.load(Ordering::Relaxed);
    let mut archived = 0;
    for seed in 0..LIARS {
        HELD_MAX.store(HELD.load(Ordering::Relaxed), Ordering::Relaxed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let task = runtime.block_on(async { tokio::spawn(ship_from_a_liar(seed)).await });
        assert!(PANICS.load(Ordering::Relaxed) == 0, "seed {seed} panicked");
        archived += task.unwrap_or_default();
        let held = HELD_MAX.load(Ordering::Relaxed) - before;
        assert!(held < MEMORY_BYTES_MAX, "seed {seed} took {held} bytes");
    }
    assert!(archived > 0, "the lies were so bad that none was tried");
}
