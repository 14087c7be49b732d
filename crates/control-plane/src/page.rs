//! A page of a list, as the answer to a user: its rows, and where the next page is (RFC 8288).

use std::fmt;
use std::str::FromStr;

use api::user::{DEFAULT_PAGE, MAX_PAGE, Paged};
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use model::{AppName, EnvKey, EnvName};
use serde::Serialize;

use crate::failure::ApiFailure;

/// Which rows are wanted: those behind a place, and how many at most.
#[derive(Debug)]
pub(crate) struct Page<K> {
    pub(crate) after: Option<K>,
    pub(crate) limit: usize,
}

impl<K: FromStr> Page<K> {
    /// The page that a query names.
    pub(crate) fn of(query: &impl Paged) -> Result<Self, ApiFailure> {
        let (after, limit) = query.page();
        let limit = limit.unwrap_or(DEFAULT_PAGE);
        if limit == 0 || limit > MAX_PAGE {
            return Err(ApiFailure::bad_request(format!(
                "`limit` is {limit}: a page has 1 to {MAX_PAGE} rows"
            )));
        }
        let place = |text: &str| {
            text.parse().map_err(|_| {
                ApiFailure::bad_request(format!(
                    "`after` is `{text}`, which is no place of this list"
                ))
                .hint("take the next page's URL from the header Link of the page before")
            })
        };
        Ok(Self {
            after: after.map(place).transpose()?,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
        })
    }

    /// The first of these that belong to the page, and the place of the last of them where others follow.
    pub(crate) fn take<T>(
        &self,
        rows: impl Iterator<Item = T>,
        place: impl Fn(&T) -> K,
    ) -> (Vec<T>, Option<K>) {
        let mut rows = rows.fuse();
        let taken: Vec<T> = rows.by_ref().take(self.limit).collect();
        let next = taken.last().filter(|_| rows.next().is_some()).map(place);
        (taken, next)
    }
}

/// A place in a list that is ordered by env and then by an id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct InEnv<I> {
    pub(crate) env: EnvKey,
    pub(crate) id: I,
}

impl<I: fmt::Display> fmt::Display for InEnv<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.env, self.id)
    }
}

impl<I: FromStr> FromStr for InEnv<I> {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (env, id) = text.rsplit_once('/').ok_or(())?;
        let InApp(env) = env.parse()?;
        Ok(Self {
            env,
            id: id.parse().map_err(|_| ())?,
        })
    }
}

/// A place in a list that is ordered by env.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InApp(pub(crate) EnvKey);

impl fmt::Display for InApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for InApp {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (app, env) = text.split_once('/').ok_or(())?;
        let app: AppName = app.parse().map_err(|_| ())?;
        let env: EnvName = env.parse().map_err(|_| ())?;
        Ok(Self(EnvKey { app, env }))
    }
}

/// The rows of one page, and the URL of the next.
#[derive(Debug)]
pub(crate) struct Rows<T> {
    rows: Vec<T>,
    next: Option<HeaderValue>,
}

impl<T> Rows<T> {
    /// `next`: the place of the last row, where others follow.
    pub(crate) fn new(
        path: &str,
        query: &impl Paged,
        rows: Vec<T>,
        next: Option<impl fmt::Display>,
    ) -> Result<Self, ApiFailure> {
        let link = |place: String| {
            let query = serde_urlencoded::to_string(query.after(place));
            let query = query.map_err(|error| ApiFailure::internal(&error))?;
            HeaderValue::try_from(format!("<{path}?{query}>; rel=\"next\""))
                .map_err(|error| ApiFailure::internal(&error))
        };
        let next = next.map(|place| link(place.to_string())).transpose()?;
        Ok(Self { rows, next })
    }
}

impl<T: Serialize> IntoResponse for Rows<T> {
    fn into_response(self) -> Response {
        let mut response = Json(self.rows).into_response();
        if let Some(next) = self.next {
            response.headers_mut().insert(header::LINK, next);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use api::user::InstancesQuery;
    use model::{InstanceId, NodeId};

    use super::*;

    fn query(after: &str, limit: Option<u32>) -> InstancesQuery {
        InstancesQuery {
            after: Some(after.to_owned()),
            limit,
            ..InstancesQuery::default()
        }
    }

    #[test]
    fn a_place_is_read_as_it_was_told() {
        let of = |text: &str| Page::<InEnv<InstanceId>>::of(&query(text, Some(10)));
        let page = of("shop/prod/0000000a").unwrap();
        let place = page.after.unwrap();
        assert_eq!(place.to_string(), "shop/prod/0000000a");
        assert_eq!(place.id, InstanceId(10));
        for wrong in [
            "",
            "shop/prod",
            "shop/prod/1",
            "/prod/0000000a",
            "a/b/c/0000000a",
        ] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
        assert!(Page::<NodeId>::of(&query("n7", Some(0))).is_err());
        assert!(Page::<NodeId>::of(&query("n7", Some(10_001))).is_err());
        assert_eq!(Page::<NodeId>::of(&query("n7", None)).unwrap().limit, 1000);
    }

    #[test]
    fn a_page_that_ends_with_the_list_names_no_next_one() {
        let page = Page::<NodeId>::of(&query("n0", Some(2))).unwrap();
        let take = |count: u16| page.take((1..=count).map(NodeId), |id| *id);
        assert_eq!(take(0), (vec![], None));
        assert_eq!(take(2), (vec![NodeId(1), NodeId(2)], None));
        assert_eq!(take(3), (vec![NodeId(1), NodeId(2)], Some(NodeId(2))));
    }
}
