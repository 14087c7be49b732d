//! Orgs, apps, users and their tokens: [`scheduler::access`] in tables.

use std::collections::BTreeMap;

use api::user::Grants;
use model::{AppName, NameError, OrgName, Timestamp, UserName};
use scheduler::access::{Access, AccessChanges, Org, UserRecord, UserToken};
use scheduler::cluster_state::{Subject, TokenHash, UnreadableRecord};

use crate::database::{Columns, Row, Transaction, Value, delete, insert_once, put};
use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::{in_range, to_i64};
use crate::{Store, StoreError, events};

const TOKENS: &str = "user_tokens";
const TOKENS_OF: &str = "hash, of_user, org, role, created_at, expires_at, made_by, note";

impl Store {
    /// Lets a user in by a token, as an admin of the cluster where the user is not there yet. A server does it when it starts, whether it leads or not:
    /// the rows are new, and nothing in memory is of them until the token is first shown ([`Self::user_token`]). It is taken into the cluster state then, which
    /// is an event.
    pub async fn add_admin_token(
        &self,
        hash: &TokenHash,
        user: &UserName,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let operation = "write a user's token";
        let grants = Grants {
            cluster: Some(api::user::Role::Admin),
            ..Grants::default()
        };
        let record = UserRecord {
            grants,
            created_at: now,
        };
        let token = UserToken {
            user: user.clone(),
            org: None,
            role: None,
            created_at: now,
            expires_at: None,
            by: None,
            note: "made by a server for its own machine".to_owned(),
        };
        let failed = StoreError::query(operation);
        let mut db = self.database.begin().await.map_err(failed)?;
        insert_once(&mut *db, operation, "users", user_columns(user, &record)?).await?;
        put(
            &mut *db,
            operation,
            TOKENS,
            1,
            vec![token_columns(hash, &token)?],
        )
        .await?;
        db.commit().await.map_err(failed)
    }

    /// The token with this hash, and its user, as the store has them.
    pub async fn user_token(
        &self,
        hash: &TokenHash,
    ) -> Result<Option<(UserToken, Option<UserRecord>)>, StoreError> {
        let operation = "look up a user's token";
        let sql = format!("SELECT {TOKENS_OF} FROM {TOKENS} WHERE hash = $1");
        let rows = self
            .rows(operation, &sql, vec![hash.as_slice().into()])
            .await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let damaged = |cause| StoreError::Unreadable { cause };
        let (_, token) = token(row).map_err(damaged)?;
        let sql = "SELECT name, grants_json, created_at, json_version FROM users WHERE name = $1";
        let rows = self
            .rows(operation, sql, vec![token.user.as_str().into()])
            .await?;
        let user = rows.first().map(user).transpose().map_err(damaged)?;
        Ok(Some((token, user.map(|(_, user)| user))))
    }
}

/// Reads all of it. Rows that cannot be read are named, and let nobody in. What a server has made for its own machine since the last event
/// ([`Store::add_admin_token`]) is left out: no event has told it.
pub(crate) async fn load(
    db: &mut dyn Transaction,
    unreadable: &mut Vec<UnreadableRecord>,
) -> Result<Access, StoreError> {
    let last_event = events::last_at(db).await?;
    let orgs = "SELECT name, created_at FROM orgs";
    let apps = "SELECT name, org FROM apps";
    let users = "SELECT name, grants_json, created_at, json_version FROM users";
    let tokens = format!("SELECT {TOKENS_OF} FROM {TOKENS}");
    let mut all = AccessChanges {
        orgs: records(&mut *db, "orgs", orgs, org, unreadable).await?,
        apps: records(&mut *db, "apps", apps, app, unreadable).await?,
        users: records(&mut *db, "users", users, user, unreadable).await?,
        tokens: records(&mut *db, "tokens of users", &tokens, token, unreadable).await?,
    };
    let is_new = |token: &UserToken| token.by.is_none() && Some(token.created_at) > last_event;
    let new = all
        .tokens
        .extract_if(.., |_, token| token.as_ref().is_some_and(is_new));
    for token in new.filter_map(|(_, token)| token) {
        // The user was made with it.
        let made_with = |user: &UserRecord| user.created_at == token.created_at;
        let user = all.users.get(&token.user).and_then(Option::as_ref);
        if user.is_some_and(made_with) {
            all.users.remove(&token.user);
        }
    }
    Ok(Access::of(&all))
}

async fn records<K: Ord, V>(
    db: &mut dyn Transaction,
    what: &'static str,
    sql: &str,
    read: impl Fn(&Row) -> Result<(K, V), String>,
    unreadable: &mut Vec<UnreadableRecord>,
) -> Result<BTreeMap<K, Option<V>>, StoreError> {
    let rows = db.fetch(sql, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read who may do what"))?;
    let mut records = BTreeMap::new();
    for row in &rows {
        match read(row) {
            Ok((key, value)) => drop(records.insert(key, Some(value))),
            Err(cause) => unreadable.push(UnreadableRecord {
                subject: Subject::Row(format!("one of the {what}")),
                env: None,
                node: None,
                holds: None,
                cause,
            }),
        }
    }
    Ok(records)
}

fn name<T: std::str::FromStr<Err = NameError>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: NameError| error.to_string())
}

fn time(at: i64) -> Result<Timestamp, String> {
    in_range("a time", at).map(Timestamp)
}

fn org(row: &Row) -> Result<(OrgName, Org), String> {
    let created_at = time(row.get(1))?;
    Ok((name(row.get(0))?, Org { created_at }))
}

fn app(row: &Row) -> Result<(AppName, OrgName), String> {
    Ok((name(row.get(0))?, name(row.get(1))?))
}

fn user(row: &Row) -> Result<(UserName, UserRecord), String> {
    let record = UserRecord {
        grants: from_json(row.get(3), row.get(1))?,
        created_at: time(row.get(2))?,
    };
    Ok((name(row.get(0))?, record))
}

fn token(row: &Row) -> Result<(TokenHash, UserToken), String> {
    let hash = TokenHash::try_from(row.get::<&[u8]>(0)).map_err(|e| e.to_string())?;
    let (org, role): (Option<&str>, Option<&str>) = (row.get(2), row.get(3));
    let by: Option<&str> = row.get(6);
    let token = UserToken {
        user: name(row.get(1))?,
        org: org.map(name).transpose()?,
        role: role
            .map(|role| role.parse().map_err(|e: api::user::NotARole| e.to_string()))
            .transpose()?,
        created_at: time(row.get(4))?,
        expires_at: row.get::<Option<i64>>(5).map(time).transpose()?,
        by: by.map(name).transpose()?,
        note: row.get(7),
    };
    Ok((hash, token))
}

/// Writes what changed. What refers to others goes before them, and comes after.
pub(crate) async fn write(
    db: &mut dyn Transaction,
    changes: &AccessChanges,
) -> Result<(), StoreError> {
    let operation = "write who may do what";
    let AccessChanges {
        orgs,
        apps,
        users,
        tokens,
    } = changes;
    let gone = keys_gone(tokens, |hash| hash.as_slice().into());
    delete(&mut *db, operation, TOKENS, &["hash"], gone).await?;
    let gone = keys_gone(users, |user| user.as_str().into());
    delete(&mut *db, operation, "users", &["name"], gone).await?;
    let gone = keys_gone(apps, |app| app.as_str().into());
    delete(&mut *db, operation, "apps", &["name"], gone).await?;
    let gone = keys_gone(orgs, |org| org.as_str().into());
    delete(&mut *db, operation, "orgs", &["name"], gone).await?;

    let rows = written(orgs, |name, org| {
        let created_at = to_i64("a time", org.created_at.0)?;
        Ok(vec![
            ("name", name.as_str().into()),
            ("created_at", created_at.into()),
        ])
    })?;
    put(&mut *db, operation, "orgs", 1, rows).await?;
    let rows = written(apps, |name, org| {
        Ok(vec![
            ("name", name.as_str().into()),
            ("org", org.as_str().into()),
        ])
    })?;
    put(&mut *db, operation, "apps", 1, rows).await?;
    let rows = written(users, user_columns)?;
    put(&mut *db, operation, "users", 1, rows).await?;
    let rows = written(tokens, token_columns)?;
    put(&mut *db, operation, TOKENS, 1, rows).await
}

fn keys_gone<K, V>(records: &BTreeMap<K, Option<V>>, key: impl Fn(&K) -> Value) -> Vec<Vec<Value>> {
    let gone = records.iter().filter(|(_, record)| record.is_none());
    gone.map(|(id, _)| vec![key(id)]).collect()
}

fn written<'a, K, V>(
    records: &'a BTreeMap<K, Option<V>>,
    columns: impl Fn(&'a K, &'a V) -> Result<Columns<'static>, StoreError>,
) -> Result<Vec<Columns<'static>>, StoreError> {
    let kept = (records.iter()).filter_map(|(key, record)| Some((key, record.as_ref()?)));
    kept.map(|(key, record)| columns(key, record)).collect()
}

fn user_columns(name: &UserName, user: &UserRecord) -> Result<Columns<'static>, StoreError> {
    Ok(vec![
        ("name", name.as_str().into()),
        ("grants_json", to_json(&user.grants)?.into()),
        ("created_at", to_i64("a time", user.created_at.0)?.into()),
        ("json_version", JSON_VERSION.into()),
    ])
}

fn token_columns(hash: &TokenHash, token: &UserToken) -> Result<Columns<'static>, StoreError> {
    let text = |text: Option<&str>| text.map(str::to_owned);
    let expires_at = token
        .expires_at
        .map(|at| to_i64("a time", at.0))
        .transpose()?;
    Ok(vec![
        ("hash", hash.as_slice().into()),
        ("of_user", token.user.as_str().into()),
        ("org", text(token.org.as_ref().map(OrgName::as_str)).into()),
        ("role", text(token.role.map(api::user::Role::as_str)).into()),
        ("created_at", to_i64("a time", token.created_at.0)?.into()),
        ("expires_at", expires_at.into()),
        (
            "made_by",
            text(token.by.as_ref().map(UserName::as_str)).into(),
        ),
        ("note", token.note.clone().into()),
    ])
}
