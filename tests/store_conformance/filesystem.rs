//! The filesystem store.

use std::{
    ffi::OsStr,
    fs::{self, File},
    os::unix::{
        ffi::OsStrExt,
        fs::{PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use mysql_pitr::store::{CALL_TIMEOUT, Put, SharedStore, Store, StoreError, filesystem::FilesystemStore};
use tempfile::TempDir;

use super::{MIB, RACERS, content, create, keys, pattern};

struct Folder(TempDir);

impl Folder {
    async fn make() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> SharedStore {
        Arc::new(self.open())
    }

    fn open(&self) -> FilesystemStore {
        FilesystemStore::open(self.0.path()).unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn temps(&self) -> usize {
        fs::read_dir(self.path(".tmp")).unwrap().count()
    }
}

crate::store_conformance::conformance!(Folder::make());

fn assert_refused<T>(result: Result<T, StoreError>, text: &str) {
    match result {
        Err(e @ StoreError::Refused { .. }) => assert!(e.to_string().contains(text), "{e}"),
        other => panic!("not refused: {:?}", other.err()),
    }
}

#[tokio::test]
async fn a_folder_is_not_made_by_opening_it() {
    let folder = Folder::make().await;
    let missing = folder.path("missing");
    assert_refused(
        FilesystemStore::open(&missing),
        "missing refused to open: there is no such folder; mount its disk, or create it",
    );
    assert!(!missing.exists());
    fs::write(folder.path("file"), "x").unwrap();
    assert_refused(FilesystemStore::open(&folder.path("file")), "this is not a folder");
}

/// A disk that was pulled must not look like an empty archive.
#[tokio::test]
async fn a_folder_that_vanished_is_not_an_empty_store() {
    let folder = Folder::make().await;
    fs::create_dir(folder.path("root")).unwrap();
    let store = FilesystemStore::open(&folder.path("root")).unwrap();
    fs::remove_dir(folder.path("root")).unwrap();
    assert_refused(store.list("", None).await, "its folder is gone");
    assert_refused(store.list("a/b", None).await, "its folder is gone");
    assert_refused(store.get("a").await, "its folder is gone");
    assert_refused(store.put("a", Bytes::new(), Put::IfAbsent).await, "its folder is gone");
    assert!(!folder.path("root").exists());
}

#[tokio::test]
async fn stores_on_one_folder_respect_each_others_replacements() {
    let folder = Folder::make().await;
    let mut version = create(&folder.open(), "lease", b"0").await;
    for round in 1..=20u32 {
        let racers = (0..RACERS).map(|racer| {
            let (store, version) = (folder.open(), version.clone());
            tokio::spawn(async move {
                store
                    .put("lease", format!("{round}.{racer}").into(), Put::IfMatch(version))
                    .await
            })
        });
        let ends = futures_util::future::join_all(racers).await;
        let mut won: Vec<_> = ends.into_iter().filter_map(|end| end.unwrap().ok()).collect();
        assert_eq!(won.len(), 1, "in round {round}");
        version = won.remove(0);
    }
    assert_eq!(folder.open().get("lease").await.unwrap().1, version);
}

/// Deleting the last object of a folder removes the folder, which a creation beside it may just have made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creations_survive_deletions_beside_them() {
    let folder = Folder::make().await;
    let workers = (0..4).map(|worker| {
        let store = folder.open();
        tokio::spawn(async move {
            let key = format!("a/b/c/{worker}");
            for _ in 0..100 {
                create(&store, &key, b"x").await;
                assert_eq!(content(&store, &key).await, "x");
                store.delete(&key).await.unwrap();
            }
        })
    });
    for worker in futures_util::future::join_all(workers).await {
        worker.unwrap();
    }
    assert!(!folder.path("a").exists());
}

#[tokio::test]
async fn temporary_files_go_with_their_upload_and_the_dead_ones_after_a_day() {
    let folder = Folder::make().await;
    let store = folder.open();
    create(&store, "a", b"x").await;
    store.put("a", Bytes::new(), Put::IfAbsent).await.unwrap_err();
    let mut upload = store.upload("b").await.unwrap();
    upload.write(pattern(MIB)).await.unwrap();
    assert_eq!(folder.temps(), 1);
    drop(upload);
    assert_eq!(folder.temps(), 0);

    let age = |name: &str, hours: u64| {
        let at = SystemTime::now() - Duration::from_secs(hours * 60 * 60);
        File::create(folder.path(name)).unwrap().set_modified(at).unwrap();
    };
    age(".tmp/young", 23);
    age(".tmp/old", 25);
    folder.open();
    assert!(folder.path(".tmp/young").exists());
    assert!(!folder.path(".tmp/old").exists());
}

#[tokio::test]
async fn what_is_no_object_is_not_listed() {
    let folder = Folder::make().await;
    let store = folder.open();
    create(&store, "a/b", b"x").await;
    create(&store, "a/c", b"x").await;
    fs::write(folder.path(".hidden"), "x").unwrap();
    fs::write(folder.path("a/.nfs0001"), "x").unwrap();
    fs::write(folder.0.path().join(OsStr::from_bytes(b"a/\xff")), "x").unwrap();
    fs::create_dir(folder.path("a/empty")).unwrap();
    symlink(".", folder.path("a/loop")).unwrap();
    assert_eq!(keys(&store, "", None).await, ["a/b", "a/c"]);
}

#[tokio::test]
async fn a_name_is_an_object_or_a_folder() {
    let folder = Folder::make().await;
    let store = folder.open();
    create(&store, "a/b", b"x").await;
    assert_refused(
        store.put("a", Bytes::new(), Put::IfAbsent).await,
        "an object and a folder of objects cannot have one name",
    );
    assert_refused(
        store.put("a/b/c", Bytes::new(), Put::IfAbsent).await,
        "an object and a folder of objects cannot have one name",
    );
    assert_eq!(keys(&store, "", None).await, ["a/b"]);
}

#[tokio::test]
async fn objects_are_not_for_everyone() {
    let folder = Folder::make().await;
    create(&folder.open(), "a/b", b"x").await;
    for name in ["a", "a/b"] {
        let mode = fs::metadata(folder.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o007, 0, "{name} has {mode:o}");
    }
}

/// A pipe that nobody writes to blocks whoever opens it, as a dead file server does.
#[tokio::test]
async fn a_disk_that_does_not_answer_ends_in_an_error() {
    let folder = Folder::make().await;
    assert!(Command::new("mkfifo").arg(folder.path("stuck")).status().unwrap().success());
    let store = folder.open();
    let begun = Instant::now();
    let error = store.read("stuck", 0).await.err().unwrap();
    // Lets the blocked thread go, which the end of the test would wait for.
    File::options().write(true).open(folder.path("stuck")).unwrap();
    assert!(error.is_transient(), "{error:?}");
    assert!(begun.elapsed() < CALL_TIMEOUT * 2);
    assert_eq!(
        format!("{:#}", anyhow::Error::from(error)).split(": ").last(),
        Some("the disk or file server did not answer in time")
    );
}

/// A small filesystem of its own; None, visibly, where this process may not mount one.
struct Mount(PathBuf);

impl Mount {
    fn make(path: PathBuf, test: &str) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mounted = mount(["-t", "tmpfs", "-o", "size=1m", "tmpfs"], &path);
        if !mounted {
            eprintln!("SKIPPED: {test}: only root may mount a tmpfs");
        }
        mounted.then_some(Mount(path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount<const N: usize>(options: [&str; N], path: &Path) -> bool {
    Command::new("mount")
        .args(options)
        .arg(path)
        .stderr(std::process::Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[tokio::test]
async fn a_full_disk_fails_until_there_is_room() {
    let folder = Folder::make().await;
    let Some(disk) = Mount::make(folder.path("disk"), "a full disk") else {
        return;
    };
    let store = FilesystemStore::open(&disk.0).unwrap();
    create(&store, "a", b"x").await;

    let error = store.put("b", pattern(2 * MIB), Put::IfAbsent).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(
        text.contains("disk failed to put b: ") && text.contains("No space left on device"),
        "{text}"
    );

    let mut upload = store.upload("c").await.unwrap();
    assert!(upload.write(pattern(2 * MIB)).await.unwrap_err().is_transient());
    assert!(upload.finish().await.is_err());

    assert_eq!(keys(&store, "", None).await, ["a"]);
    store.put("b", pattern(MIB / 2), Put::IfAbsent).await.unwrap();
}

#[tokio::test]
async fn a_read_only_disk_can_be_read() {
    let folder = Folder::make().await;
    let Some(disk) = Mount::make(folder.path("disk"), "a read-only disk") else {
        return;
    };
    create(&FilesystemStore::open(&disk.0).unwrap(), "a", b"x").await;
    assert!(mount(["-o", "remount,ro"], &disk.0));

    let store = FilesystemStore::open(&disk.0).unwrap();
    assert_eq!(content(&store, "a").await, "x");
    assert_refused(store.put("b", Bytes::new(), Put::IfAbsent).await, "mount it writable");
    assert_refused(store.delete("a").await, "mount it writable");
    assert!(matches!(store.upload("b").await, Err(StoreError::Refused { .. })));
}

/// Root may write anywhere, except through this attribute.
#[tokio::test]
async fn a_forbidden_folder_says_who_needs_what() {
    let folder = Folder::make().await;
    let store = folder.open();
    create(&store, "a/b", b"x").await;
    let chattr = |flag: &str| {
        Command::new("chattr")
            .arg(flag)
            .arg(folder.path("a"))
            .stderr(std::process::Stdio::null())
            .status()
    };
    if !chattr("+i").is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: a forbidden folder: only root may make one immutable, and not on every filesystem");
        return;
    }
    let put = store.put("a/c", Bytes::new(), Put::IfAbsent).await;
    chattr("-i").unwrap();
    assert_refused(put, "let the user that runs mysql-pitr read and write there");
}
