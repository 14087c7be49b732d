//! A PostgreSQL for tests: Debian's, in a temporary folder, reached by a unix socket only. It ends with this process, however that
//! ends.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{Connection as _, PgConnection};

/// Longest wait for it to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs until its standard input ends, which is when the test's process does. No user may be root for PostgreSQL.
const SCRIPT: &str = r#"
set -eu
folder=$1 bin=$2
# The user of the database may not enter the folder of these tests, nor read what a strict umask hides.
umask 022
cd "$folder"
as=
if [ "$(id -u)" = 0 ]; then
    chown postgres "$folder"
    as="setpriv --reuid=postgres --regid=postgres --clear-groups --"
fi
$as "$bin/initdb" -D "$folder/data" -U platform --auth=trust --no-sync --encoding=UTF8 --locale=C >"$folder/log" 2>&1
printf 'local all locked scram-sha-256\nlocal all all trust\n' >"$folder/hba"
$as "$bin/postgres" -D "$folder/data" -k "$folder" -c listen_addresses= -c hba_file="$folder/hba" -c max_connections=300 \
    >>"$folder/log" 2>&1 &
pid=$!
trap : INT TERM HUP
read -r _ || :
kill -INT $pid
wait $pid || :
rm -rf "$folder"
"#;

struct Postgres {
    folder: PathBuf,
    /// It ends when the pipe to it is closed: with this process.
    _script: Child,
}

fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let programs = versions.flatten().map(|version| version.path().join("bin"));
    let found = programs.filter(|bin| bin.join("initdb").exists()).max();
    found.expect("PostgreSQL is not installed: `make install`, or `apt-get install postgresql`")
}

fn server() -> &'static Postgres {
    static SERVER: OnceLock<Postgres> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir();
        // The script removes it.
        let folder = folder.unwrap().keep();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let script = Command::new("sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(&folder)
            .arg(programs())
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        Postgres {
            folder,
            _script: script,
        }
    })
}

fn url(folder: &Path, database: &str) -> String {
    format!(
        "postgres:///{database}?host={}&user=platform",
        folder.display()
    )
}

/// The URL of a database that has nothing in it.
pub(crate) async fn database() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
    let folder = &server().folder;
    execute(&url(folder, "postgres"), &format!("CREATE DATABASE {name}")).await;
    url(folder, &name)
}

/// Runs SQL in a database, once the server answers.
pub(crate) async fn execute(url: &str, sql: &str) {
    let begun = Instant::now();
    let mut db = loop {
        match PgConnection::connect(url).await {
            Ok(db) => break db,
            Err(error)
                if begun.elapsed() > PATIENCE || matches!(error, sqlx::Error::Configuration(_)) =>
            {
                let log = std::fs::read_to_string(server().folder.join("log"));
                panic!(
                    "PostgreSQL does not answer: {error}\n{}",
                    log.unwrap_or_default()
                );
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let sql = sqlx::AssertSqlSafe(sql.to_owned());
    sqlx::raw_sql(sql).execute(&mut db).await.unwrap();
    db.close().await.unwrap();
}
