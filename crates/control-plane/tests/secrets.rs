//! Secret bundles from the outside: set, released, delivered to one node, and never shown.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use api::user::{DeployRequest, SetSecretsRequest};
use model::instance::InstanceSpec;
use model::{Generation, ReleaseNumber};
use support::registry::Registry;
use support::{Joined, ReportsAll as _, Server, env_key, eventually, manifest, report, running};

fn set(files: &[(&str, &str)]) -> SetSecretsRequest {
    let content = |(name, text): &(&str, &str)| ((*name).to_owned(), text.as_bytes().to_vec());
    SetSecretsRequest {
        set: files.iter().map(content).collect(),
        unset: Vec::new(),
    }
}

async fn instance_of(node: &Joined, release: u32) -> InstanceSpec {
    eventually("an instance of the release", async || {
        let wait = Duration::from_millis(100);
        let state = node
            .client
            .desired(Generation::default(), wait)
            .await
            .unwrap()?;
        // What is to stop has stopped, what is to run runs.
        let running = state.instances.iter().map(|spec| running(spec.id));
        let said = report(state.generation, running.collect());
        node.client.report_all(&said).await.unwrap();
        let mut specs = state.instances.into_iter();
        specs.find(|spec| spec.release == ReleaseNumber(release))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_has_its_versions_and_only_its_node_gets_them() {
    let folder = tempfile::tempdir().unwrap();
    let (server, registry) = (Server::start(folder.path()).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let request = DeployRequest {
        only: std::collections::BTreeSet::new(),
        manifest: manifest("hello").replace(
            "[processes.web]\n",
            "[processes.web]\nsecrets = [\"database\"]\n",
        ),
        image: format!("{}/hello@{digest}", registry.host),
    };
    let refused = server.user.deploy(&key, &request).await.unwrap_err();
    assert_eq!(refused.code(), Some("secret_not_found"), "{refused}");
    assert!(refused.to_string().contains("`database`"), "{refused}");
    assert!(refused.hint().unwrap().contains("platform secrets set"));

    // Before there is an env.
    let first = set(&[("PASSWORD", "hunter2-one"), ("HOST", "db")]);
    let row = server.user.set_secrets(&key, "database", &first).await;
    let row = row.unwrap();
    assert_eq!((row.version, row.live), (1, None));
    assert_eq!(row.files, ["HOST", "PASSWORD"]);
    server.user.deploy(&key, &request).await.unwrap();
    let one = instance_of(&node, 1).await;
    let files = async |spec: &InstanceSpec| {
        let bundles = node.client.instance_secrets(spec.id).await.unwrap();
        assert_eq!((bundles.len(), bundles[0].name.as_str()), (1, "database"));
        let text = |(name, bytes): (&String, &Vec<u8>)| {
            (name.clone(), String::from_utf8(bytes.clone()).unwrap())
        };
        bundles[0]
            .files
            .iter()
            .map(text)
            .collect::<BTreeMap<_, _>>()
    };
    assert_eq!(files(&one).await["PASSWORD"], "hunter2-one");

    // A node that has not this instance gets nothing of it.
    let (_, other) = server.join_node().await;
    let refused = other.client.instance_secrets(one.id).await.unwrap_err();
    assert_eq!(refused.code(), Some("instance_not_found"));

    // What runs keeps its version; the next release has the new one.
    let second = set(&[("PASSWORD", "hunter2-two")]);
    let row = server.user.set_secrets(&key, "database", &second).await;
    assert_eq!(row.unwrap().live, Some(1));
    assert_eq!(files(&one).await["PASSWORD"], "hunter2-one");
    assert_eq!(server.user.redeploy(&key).await.unwrap().release.0, 2);
    let two = instance_of(&node, 2).await;
    let now = files(&two).await;
    assert_eq!(
        (now["PASSWORD"].as_str(), now["HOST"].as_str()),
        ("hunter2-two", "db")
    );
    let rows = server.user.secrets(&key).await.unwrap();
    assert_eq!((rows[0].version, rows[0].live), (2, Some(2)));

    let refused = server.user.delete_secrets(&key, "database").await;
    assert_eq!(refused.unwrap_err().code(), Some("secret_in_use"));
    for (name, request) in [
        ("secret_name", set(&[("../x", "y")])),
        (
            "secret_too_large",
            set(&[("x", &"y".repeat(64 * 1024 + 1))]),
        ),
    ] {
        let refused = server.user.set_secrets(&key, "more", &request).await;
        assert_eq!(refused.unwrap_err().code(), Some(name));
    }
    server
        .user
        .set_secrets(&key, "more", &set(&[("x", "y")]))
        .await
        .unwrap();
    server.user.delete_secrets(&key, "more").await.unwrap();
    assert_eq!(server.user.secrets(&key).await.unwrap().len(), 1);
    server.stop().await;

    // Nothing of it lies in clear in the server's folder.
    let hidden = |bytes: &[u8]| !bytes.windows(7).any(|seven| seven == b"hunter2");
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        assert!(hidden(&std::fs::read(&path).unwrap()), "{}", path.display());
    }
    let server = Server::start(folder.path()).await;
    assert_eq!(server.user.secrets(&key).await.unwrap()[0].version, 2);
    server.stop().await;
}
