//! The key-encryption key, backups, and a store that goes back.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::path::Path;
use std::time::Duration;

use api::edge::HasRoutes;
use api::enrollment::EnrollRole;
use api::user::{ScaleRequest, SetSecretsRequest};
use api_client::ApiClient;
use control_plane::{RestoreOptions, ServerError};
use model::Generation;
use sqlx::{Connection as _, SqliteConnection};
use support::registry::Registry;
use support::{
    Joined, PATIENCE, ReportsAll as _, Server, env_key, eventually, manifest, options, report,
    running,
};
use tokio_util::sync::CancellationToken;

const KEY_FILE: &str = "key-encryption-key.json";

/// Why a server does not start here.
async fn refused(folder: &Path) -> ServerError {
    let run = control_plane::run(options(folder), CancellationToken::new());
    let run = tokio::time::timeout(PATIENCE, run).await;
    run.expect("it does not serve").unwrap_err()
}

/// Whether a file of the folder has this text.
fn holds(folder: &Path, text: &str) -> bool {
    let files = std::fs::read_dir(folder).unwrap().flatten();
    let mut contents = files.filter_map(|entry| std::fs::read(entry.path()).ok());
    contents.any(|bytes| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    })
}

async fn execute(folder: &Path, sql: &str) {
    let url = format!("sqlite:{}", folder.join("platform.db").display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&mut db)
        .await
        .unwrap();
    db.close().await.unwrap();
}

fn secret(value: &str) -> SetSecretsRequest {
    SetSecretsRequest {
        set: [("PASSWORD".to_owned(), value.as_bytes().to_vec())].into(),
        unset: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn case_no_key_is_in_clear_and_none_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, key_file) = (folder.path(), folder.path().join(KEY_FILE));
    let server = Server::start(dir).await;
    assert!(server.ready.first_start);
    let env = env_key("hello", "prod");
    let hunter = secret("hunter2");
    server.user.set_secrets(&env, "db", &hunter).await.unwrap();
    server.stop().await;
    assert!(!holds(dir, "PRIVATE KEY") && !holds(dir, "hunter2"));

    // Missing, wrong, and of an empty store.
    let key = std::fs::read(&key_file).unwrap();
    std::fs::remove_file(&key_file).unwrap();
    let error = refused(dir).await;
    assert!(matches!(error, ServerError::KeyMissing { .. }), "{error}");
    assert!(error.hint().unwrap().contains(KEY_FILE));
    assert!(!key_file.exists(), "none is made");
    let other = tempfile::tempdir().unwrap();
    Server::start(other.path()).await.stop().await;
    std::fs::copy(other.path().join(KEY_FILE), &key_file).unwrap();
    let error = refused(dir).await;
    assert!(matches!(error, ServerError::WrongKey { .. }), "{error}");
    std::fs::remove_file(other.path().join("platform.db")).unwrap();
    let error = refused(other.path()).await;
    assert!(matches!(error, ServerError::StoreLost { .. }), "{error}");

    // One that others can read is no secret any more.
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::write(&key_file, &key).unwrap();
    std::fs::set_permissions(&key_file, mode(0o644)).unwrap();
    let error = refused(dir).await;
    assert!(matches!(error, ServerError::KeyOpen { .. }), "{error}");
    assert!(error.hint().unwrap().contains("chmod 600"));

    // A first start that was interrupted on either side of the store's own commit.
    let new = dir.join("key-encryption-key.json.new");
    std::fs::write(&new, &key).unwrap();
    std::fs::set_permissions(&new, mode(0o600)).unwrap();
    std::fs::remove_file(&key_file).unwrap();
    let server = Server::start(dir).await;
    assert!(!server.ready.first_start);
    server.stop().await;
    assert_eq!(std::fs::read(&key_file).unwrap(), key);
    let third = tempfile::tempdir().unwrap();
    std::fs::write(third.path().join("key-encryption-key.json.new"), &key).unwrap();
    Server::start(third.path()).await.stop().await;
    assert_ne!(std::fs::read(third.path().join(KEY_FILE)).unwrap(), key);
}

#[tokio::test(flavor = "multi_thread")]
async fn case_the_keys_of_a_server_of_before_are_wrapped_and_nothing_of_them_stays() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    Server::start(dir).await.stop().await;
    // As that server left it.
    let now = model::Timestamp(1_800_000_000_000);
    let ca = identity::ClusterCa::generate("0123456789abcdef", now).unwrap();
    let pems = (ca.certificate_pem(), ca.key_pem());
    execute(
        dir,
        &format!(
            "UPDATE cluster SET ca_cert_pem = '{}', ca_key_pem = '{}', ca_key_wrapped = NULL, seal_key_wrapped = NULL",
            pems.0, pems.1
        ),
    )
    .await;
    std::fs::remove_file(dir.join(KEY_FILE)).unwrap();
    let seal_key = "{\"version\": 1, \"key\": \"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\"}";
    std::fs::write(dir.join("seal-key.json"), seal_key).unwrap();
    assert!(holds(dir, "PRIVATE KEY"));
    let server = Server::start(dir).await;
    assert_eq!(server.config.ca_pem, pems.0);
    let env = env_key("hello", "prod");
    let hunter = secret("hunter2");
    server.user.set_secrets(&env, "db", &hunter).await.unwrap();
    assert!(!holds(dir, "PRIVATE KEY"));
    server.stop().await;
    assert!(!holds(dir, "PRIVATE KEY") && !holds(dir, "AAECAwQF"));
    assert!(!dir.join("seal-key.json").exists());
    // A start that ended between the store and the file; a key that is another's is left alone.
    Server::start(dir).await.stop().await;
    std::fs::write(dir.join("seal-key.json"), seal_key).unwrap();
    Server::start(dir).await.stop().await;
    assert!(!dir.join("seal-key.json").exists());
    let other = seal_key.replace("AAEC", "BBEC");
    std::fs::write(dir.join("seal-key.json"), &other).unwrap();
    Server::start(dir).await.stop().await;
    assert!(dir.join("seal-key.json").exists());
    std::fs::remove_file(dir.join("seal-key.json")).unwrap();
    // That server runs still: it locked its folder.
    let lock = std::fs::File::create(dir.join("server.lock")).unwrap();
    lock.lock().unwrap();
    let error = refused(dir).await;
    assert!(error.to_string().contains("another server"), "{error}");
    drop(lock);
    Server::start(dir).await.stop().await;

    // Where something is sealed, and the file that it was sealed by is gone.
    execute(
        dir,
        &format!(
            "UPDATE cluster SET ca_key_pem = '{}', ca_key_wrapped = NULL, seal_key_wrapped = NULL",
            pems.1
        ),
    )
    .await;
    let error = refused(dir).await;
    assert!(matches!(error, ServerError::KeyMissing { .. }), "{error}");
    assert!(error.to_string().contains("seal-key.json"), "{error}");

    // A copy of it is no backup, and the error says what to do with it.
    let whole = tempfile::tempdir().unwrap();
    Server::start(whole.path()).await.stop().await;
    let options = RestoreOptions {
        file: dir.join("platform.db"),
        data_dir: whole.path().to_owned(),
        store: None,
        rehearse: false,
    };
    let error = control_plane::restore(&options).await.unwrap_err();
    assert!(
        matches!(error, ServerError::BackupDamaged { .. }),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("data folder"));
}

/// The same member, at a server that answers at another address.
fn at(server: &Server, joined: &Joined) -> ApiClient {
    let response = &joined.response;
    ApiClient::member(
        &server.ready.url,
        &response.ca_pem,
        &response.certificate_pem,
        &joined.key_pem,
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn case_a_restored_store_is_applied_at_once_and_stops_no_vm() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let (server, registry) = (Server::start(dir).await, Registry::start().await);
    let (_, node) = server.join_node().await;
    let edge = server.join(EnrollRole::Edge).await;
    let key = env_key("hello", "prod");
    let digest = registry.push("hello", "amd64", "one").await;
    let image = format!("{}/hello@{digest}", registry.host);
    let hunter = secret("hunter2");
    server.user.set_secrets(&key, "db", &hunter).await.unwrap();
    server.deploy(&key, &manifest("hello"), &image).await;
    let wait = Duration::from_millis(200);
    let two = eventually("two instances", async || {
        // Nothing is placed on a node that is not heard.
        let nothing = report(Generation::default(), Vec::new());
        node.client.report_all(&nothing).await.unwrap();
        let state = node.client.desired(Generation::default(), wait).await;
        state.unwrap().filter(|state| state.instances.len() == 2)
    });
    let two = two.await;

    // Beside the running server.
    let file = dir.join("backup.db");
    control_plane::backup(dir, None, &file).await.unwrap();
    assert!(control_plane::backup(dir, None, &file).await.is_err());
    assert!(!holds(dir, "hunter2"));

    // Two more, which the backup does not know.
    let scale = ScaleRequest {
        processes: [("web".parse().unwrap(), 4)].into(),
    };
    server.user.scale(&key, &scale).await.unwrap();
    let four = eventually("four instances", async || {
        let state = node.client.desired(two.generation, wait).await;
        state.unwrap().filter(|state| state.instances.len() == 4)
    });
    let four = four.await;
    let all: Vec<_> = four.instances.iter().map(|spec| running(spec.id)).collect();
    let said = report(four.generation, all);
    node.client.report_all(&said).await.unwrap();
    let routes = eventually("four backends", async || {
        let table = edge.client.routes(HasRoutes::default(), wait).await;
        let table = table.unwrap()?;
        (table.routes["hello.localhost"].backends.len() == 4).then_some(table)
    });
    let routes = routes.await;
    let mut restore = RestoreOptions {
        file,
        data_dir: dir.to_owned(),
        store: None,
        rehearse: false,
    };
    let error = control_plane::restore(&restore).await.unwrap_err();
    assert!(error.to_string().contains("another server"), "{error}");

    // The rehearsal changes nothing, and the server may run.
    restore.rehearse = true;
    let opened = control_plane::restore(&restore).await.unwrap();
    assert_eq!((opened.envs, opened.instances, opened.secrets), (1, 2, 1));
    assert!(opened.unreadable.is_empty() && opened.replaced.is_none());
    server.stop().await;
    let server = Server::start(dir).await;
    let still = at(&server, &node).desired(two.generation, wait).await;
    assert_eq!(still.unwrap().unwrap(), four);
    server.stop().await;

    restore.rehearse = false;
    let restored = control_plane::restore(&restore).await.unwrap();
    assert!(restored.replaced.unwrap().exists());
    let server = Server::start(dir).await;
    // Whatever counters they have, the node and the edge get the older state at once, and nothing is stopped by it.
    let client = at(&server, &node);
    client.report_all(&said).await.unwrap();
    let state = client.desired(four.generation, PATIENCE).await.unwrap();
    let state = state.unwrap();
    assert_ne!(state.generation.incarnation, four.generation.incarnation);
    assert_eq!((state.instances.len(), state.stop.len()), (2, 0));
    // What it does not know is named, and ends when a user says so.
    let known: Vec<_> = state.instances.iter().map(|spec| spec.id).collect();
    let mut unknown: Vec<_> = four.instances.iter().map(|spec| spec.id).collect();
    unknown.retain(|id| !known.contains(id));
    let row = server.user.nodes().await.unwrap().remove(0);
    assert_eq!(row.unknown_instances, unknown);
    let refused = server.user.stop_unknown(row.id, vec![known[0]]).await;
    assert_eq!(
        refused.unwrap_err().code(),
        Some("unknown_instance_not_found")
    );
    let told = server.user.stop_unknown(row.id, vec![]).await.unwrap();
    assert_eq!(told.instances, unknown);
    let stops = client.desired(state.generation, PATIENCE).await.unwrap();
    let stops = stops.unwrap();
    assert_eq!((stops.instances.len(), &stops.stop), (2, &unknown));
    let left = known.iter().map(|id| running(*id)).collect();
    client
        .report_all(&report(stops.generation, left))
        .await
        .unwrap();
    let row = server.user.nodes().await.unwrap().remove(0);
    assert!(row.unknown_instances.is_empty());
    let state = client.desired(stops.generation, PATIENCE).await.unwrap();
    let state = state.unwrap();
    assert_eq!((state.instances.len(), state.stop.len()), (2, 0));

    let table = at(&server, &edge).routes(routes.as_had(), PATIENCE).await;
    let table = table.unwrap().unwrap();
    assert_eq!(table.generation.incarnation, state.generation.incarnation);
    assert!(table.since.is_none());
    // And it goes on from there.
    server.user.scale(&key, &scale).await.unwrap();
    let further = eventually("four instances again", async || {
        let further = client.desired(state.generation, wait).await.unwrap()?;
        (further.instances.len() == 4).then_some(further)
    });
    assert_eq!(further.await.stop.len(), 0);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn case_what_is_no_backup_of_this_cluster_is_refused_and_changes_nothing() {
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for folder in [&ours, &theirs] {
        Server::start(folder.path()).await.stop().await;
    }
    let before = std::fs::read(ours.path().join("platform.db")).unwrap();
    let no_backup = ours.path().join("no-backup");
    std::fs::write(&no_backup, "no database").unwrap();
    let other = ours.path().join("other.db");
    control_plane::backup(theirs.path(), None, &other)
        .await
        .unwrap();
    let missing = ours.path().join("missing.db");
    for file in [no_backup, other, missing] {
        let options = RestoreOptions {
            file: file.clone(),
            data_dir: ours.path().to_owned(),
            store: None,
            rehearse: false,
        };
        let error = control_plane::restore(&options).await.unwrap_err();
        let is_other = matches!(error, ServerError::WrongKey { .. });
        assert_eq!(is_other, file.ends_with("other.db"), "{error}");
        let after = std::fs::read(ours.path().join("platform.db")).unwrap();
        assert!(after == before, "{}", file.display());
    }
    let left = std::fs::read_dir(ours.path()).unwrap().flatten();
    let left = left.filter(|file| file.file_name().to_string_lossy().contains("restoring"));
    assert_eq!(left.count(), 0);
    Server::start(ours.path()).await.stop().await;
}
