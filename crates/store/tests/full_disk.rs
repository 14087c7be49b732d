//! A disk that is full, and then is not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::process::Command;

use scheduler::changes::Changes;
use scheduler::cluster_state::Instance;
use store::StoreError;
use support::*;

/// A small disk of its own, mounted on a folder until it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.unwrap().success(), "mounting needs root");
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[tokio::test]
async fn a_store_whose_disk_was_full_takes_writes_again_once_there_is_room() {
    let disk = SmallDisk::mount();
    let store = open_at(&sqlite_url(disk.path())).await;
    let node = add_node(&store, "box").await;
    write(&store, vec![created("shop", 1)]).await;
    let mut changes = Changes::default();
    for id in 1..=500 {
        let id = model::InstanceId(id);
        let scheduler::apply::Command::Plan(scheduler::action::Action::Create(placed)) =
            placed("shop", 1, id, node)
        else {
            panic!("an instance is created");
        };
        let instance = Instance::new(placed.spec, node, NOW);
        changes.instances.insert(id, Some(instance.into()));
    }
    // No byte is left; what is to be written is more than what the log has kept for itself.
    let filler = disk.path().join("filler");
    let copied = std::io::copy(
        &mut std::io::repeat(1),
        &mut std::fs::File::create(&filler).unwrap(),
    );
    assert_eq!(copied.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    for _ in 0..3 {
        let refused = store.write(store.term, &changes).await.unwrap_err();
        assert!(matches!(refused, StoreError::Query { .. }), "{refused}");
        assert!(
            format!("{refused:?}").contains("full"),
            "{}",
            format!("{refused:?}")
        );
    }
    // What is there can be read all the while.
    assert!(store.load().await.unwrap().instances.is_empty());
    std::fs::remove_file(&filler).unwrap();
    store.write(store.term, &changes).await.unwrap();
    assert_eq!(store.load().await.unwrap().instances.len(), 500);
}
