//! Events: written with the change that they tell of, read by what they are about, and deleted when they are old.

use api::event::{Event, EventKind};
use model::{AppName, EnvName, InstanceId, NodeId, OrgName, ProcessName, Timestamp};
use scheduler::changes::Changes;
use scheduler::event_log::PrunedEvents;

use crate::database::{Transaction, Value, delete, insert};
use crate::record::{JSON_VERSION, from_json, to_json};
use crate::rows::{number, to_i64};
use crate::{Store, StoreError};

const TABLE: &str = "events";

/// Which events are read. All of what is named has to fit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Those after this number, the oldest first. Absent: the newest; they are given the oldest first too.
    pub after: Option<u64>,
    /// Those of these orgs' apps. Absent: all, those of the cluster too.
    pub orgs: Option<Vec<OrgName>>,
    /// Of an app.
    pub app: Option<AppName>,
    /// Of envs of this name.
    pub env: Option<EnvName>,
    /// Of a process type, by its name.
    pub process: Option<ProcessName>,
    /// Of an instance.
    pub instance: Option<InstanceId>,
    /// Of a node, or on it.
    pub node: Option<NodeId>,
    /// Of one of these kinds. Empty: of any.
    pub kinds: Vec<EventKind>,
    /// Of this time or later.
    pub since: Option<Timestamp>,
    /// At most so many.
    pub limit: u32,
}

/// The conditions of a query and their values.
#[derive(Default)]
struct Conditions {
    sql: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, condition: &str, value: Value) {
        self.values.push(value);
        self.sql.push(format!("{condition} ${}", self.values.len()));
    }

    fn add_any(&mut self, column: &str, values: impl Iterator<Item = Value>) {
        let first = self.values.len() + 1;
        self.values.extend(values);
        let places: Vec<_> = (first..=self.values.len())
            .map(|n| format!("${n}"))
            .collect();
        self.sql.push(match places.as_slice() {
            [] => "1 = 0".to_owned(),
            places => format!("{column} IN ({})", places.join(", ")),
        });
    }
}

impl Store {
    /// Events, in their order. One that cannot be read is left out.
    pub async fn events(&self, filter: &EventFilter) -> Result<Vec<Event>, StoreError> {
        let EventFilter {
            after,
            orgs,
            app,
            env,
            process,
            instance,
            node,
            kinds,
            since,
            limit,
        } = filter;
        let mut conditions = Conditions::default();
        if let Some(after) = after {
            // No number is larger than what the column holds.
            let after = i64::try_from(*after).unwrap_or(i64::MAX);
            conditions.add("number >", after.into());
        }
        if let Some(orgs) = orgs {
            conditions.add_any("org", orgs.iter().map(|org| org.as_str().into()));
        }
        if let Some(app) = app {
            conditions.add("app =", app.as_str().into());
        }
        if let Some(env) = env {
            conditions.add("env =", env.as_str().into());
        }
        if let Some(process) = process {
            conditions.add("process =", process.as_str().into());
        }
        if let Some(instance) = instance {
            conditions.add("instance =", instance.0.into());
        }
        if let Some(node) = node {
            conditions.add("node =", node.0.into());
        }
        if !kinds.is_empty() {
            conditions.add_any("kind", kinds.iter().map(|kind| kind.as_str().into()));
        }
        if let Some(since) = since {
            let since = i64::try_from(since.0).unwrap_or(i64::MAX);
            conditions.add("at >=", since.into());
        }
        let wanted = match conditions.sql.as_slice() {
            [] => String::new(),
            sql => format!(" WHERE {}", sql.join(" AND ")),
        };
        let order = if after.is_some() { "ASC" } else { "DESC" };
        let sql = format!(
            "SELECT number, event_json, json_version FROM {TABLE}{wanted} ORDER BY number {order} LIMIT {limit}"
        );
        let rows = self
            .rows("read the events", &sql, conditions.values)
            .await?;
        let mut events: Vec<_> = (rows.iter())
            .filter_map(|row| {
                let event: Event = from_json(row.get(2), row.get(1)).ok()?;
                Some(event)
            })
            .collect();
        if after.is_none() {
            events.reverse();
        }
        Ok(events)
    }
}

/// The number of the last event; 0: there is none.
pub(crate) async fn last(db: &mut dyn Transaction) -> Result<u64, StoreError> {
    let sql = "SELECT COALESCE(MAX(number), 0) FROM events";
    let rows = db.fetch(sql, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the number of the last event"))?;
    let last = rows.first().map_or(0, |row| row.get(0));
    number("the number of an event", last)
}

/// When the last event was; `None`: there was none.
pub(crate) async fn last_at(db: &mut dyn Transaction) -> Result<Option<Timestamp>, StoreError> {
    let sql = "SELECT MAX(at) FROM events";
    let rows = db.fetch(sql, Vec::new()).await;
    let rows = rows.map_err(StoreError::query("read the time of the last event"))?;
    let last: Option<i64> = rows.first().and_then(|row| row.get(0));
    last.map(|at| Ok(Timestamp(number("a time", at)?)))
        .transpose()
}

/// Writes what happened, and deletes what is kept no longer.
pub(crate) async fn write(db: &mut dyn Transaction, changes: &Changes) -> Result<(), StoreError> {
    let replaced = changes.replaced_events.iter();
    let replaced: Vec<_> = replaced
        .map(|number| Ok(vec![to_i64("the number of an event", *number)?.into()]))
        .collect::<Result<_, StoreError>>()?;
    delete(&mut *db, "replace an event", TABLE, &["number"], replaced).await?;
    let rows = changes.events.iter().map(|event| {
        let text = |text: Option<&str>| text.map(str::to_owned);
        Ok(vec![
            (
                "number",
                to_i64("the number of an event", event.number)?.into(),
            ),
            ("at", to_i64("a time", event.at.0)?.into()),
            ("kind", event.kind.as_str().into()),
            ("org", text(event.org.as_ref().map(OrgName::as_str)).into()),
            ("app", text(event.app.as_ref().map(AppName::as_str)).into()),
            ("env", text(event.env.as_ref().map(EnvName::as_str)).into()),
            (
                "process",
                text(event.process.as_ref().map(ProcessName::as_str)).into(),
            ),
            ("instance", event.instance.map(|id| i64::from(id.0)).into()),
            ("node", event.node.map(|id| i64::from(id.0)).into()),
            ("event_json", to_json(event)?.into()),
            ("json_version", JSON_VERSION.into()),
        ])
    });
    let rows = rows.collect::<Result<_, StoreError>>()?;
    insert(&mut *db, "write an event", TABLE, rows).await?;
    match changes.pruned_events {
        Some(pruned) => prune(db, pruned).await,
        None => Ok(()),
    }
}

/// Deletes the oldest events that are kept no longer, no more than the bound: it looks at no others.
async fn prune(db: &mut dyn Transaction, pruned: PrunedEvents) -> Result<(), StoreError> {
    let failed = StoreError::query("delete old events");
    let most = i64::try_from(pruned.most).unwrap_or(i64::MAX);
    let sql = "SELECT number, at FROM events ORDER BY number LIMIT $1";
    let oldest = db.fetch(sql, vec![most.into()]).await.map_err(failed)?;
    let up_to = to_i64("the number of an event", pruned.up_to)?;
    let before = to_i64("a time", pruned.before.0)?;
    let is_old =
        |row: &&crate::database::Row| row.get::<i64>(0) <= up_to || row.get::<i64>(1) < before;
    let old = oldest.iter().take_while(is_old).last();
    let Some(last) = old.map(|row| row.get::<i64>(0)) else {
        return Ok(());
    };
    let sql = "DELETE FROM events WHERE number <= $1";
    let deleted = db.execute(sql, vec![last.into()]).await;
    deleted.map_err(failed).map(drop)
}
