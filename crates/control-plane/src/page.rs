//! A page of a list, as the answer to a user: its rows, and where the next page is (RFC 8288).

use std::fmt;
use std::str::FromStr;

use api::user::{DEFAULT_PAGE, MAX_PAGE, Paged};
use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};
use model::{AppName, EnvKey, EnvName, UserName};
use scheduler::cluster_state::TokenHash;
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

/// A place in the list of tokens, which is ordered by user and then by hash: the user, and the token's id, with which its hash begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OfUser {
    pub(crate) user: UserName,
    pub(crate) id: String,
}

impl OfUser {
    /// The place behind every token of this id.
    pub(crate) fn key(&self) -> Option<(UserName, TokenHash)> {
        let mut last = [u8::MAX; 32];
        for (byte, at) in last.iter_mut().zip((0..self.id.len()).step_by(2)) {
            *byte = u8::from_str_radix(self.id.get(at..at + 2)?, 16).ok()?;
        }
        Some((self.user.clone(), last))
    }
}

impl fmt::Display for OfUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.id)
    }
}

impl FromStr for OfUser {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (user, id) = text.rsplit_once('/').ok_or(())?;
        let place = Self {
            user: user.parse().map_err(|_| ())?,
            id: id.to_owned(),
        };
        let is_id = !id.is_empty() && id.len() <= 64 && id.bytes().all(|b| b.is_ascii_hexdigit());
        let is_whole = place.key().is_some();
        (is_id && is_whole).then_some(place).ok_or(())
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

    use api::user::{InstancesQuery, UserTokensQuery};
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
    fn a_place_of_tokens_is_behind_the_token_that_it_names() {
        let query = UserTokensQuery {
            after: Some("ann@example.com/0a1b2c3d4e5f".to_owned()),
            ..UserTokensQuery::default()
        };
        let place = Page::<OfUser>::of(&query).unwrap().after.unwrap();
        assert_eq!(place.to_string(), "ann@example.com/0a1b2c3d4e5f");
        let (user, last) = place.key().unwrap();
        assert_eq!(user.as_str(), "ann@example.com");
        assert_eq!(last[..7], [0x0a, 0x1b, 0x2c, 0x3d, 0x4e, 0x5f, 0xff]);
        for wrong in [
            "",
            "ann",
            "ann/",
            "ann/0a1",
            "ann/0a1b2c3d4e5g",
            "/0a1b2c3d4e5f",
        ] {
            assert!(wrong.parse::<OfUser>().is_err(), "{wrong}");
        }
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
