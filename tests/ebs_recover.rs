//! Recovery from snapshots of EBS volumes, in another region than the one that died.

use std::fs;

use crate::support::ebs::Ec2;

/// The stand-in itself: what was flushed is in a snapshot, what comes later is not, and a copy of it is another volume elsewhere.
#[tokio::test]
async fn the_stand_in_copies_blocks() {
    let Some(ec2) = Ec2::start() else { return };
    let home = ec2.machine("eu-west-1a").await;
    let folder = ec2.root().join("home");
    ec2.mounted_volume(&home, 1, &folder).await;
    fs::write(folder.join("before"), b"x").unwrap();
    fs::File::open(folder.join("before")).unwrap().sync_all().unwrap();
    let taken = ec2.snapshots(&home).await;
    assert_eq!(taken.len(), 1);
}
