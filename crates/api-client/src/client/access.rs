//! The calls of users about who may do what.

use api::paths;
use api::user::{
    AppRow, AppsQuery, CreateOrgRequest, CreateUserTokenRequest, CreateUserTokenResponse,
    GrantRequest, MoveAppRequest, OrgRow, UserRow, UserTokenRow, UserTokensQuery, UsersQuery,
    WhoAmI,
};
use model::{AppName, OrgName, UserName};
use reqwest::Method;

use super::ApiClient;
use crate::ClientError;

/// Who may do what.
impl ApiClient {
    /// Who the caller is.
    pub async fn whoami(&self) -> Result<WhoAmI, ClientError> {
        self.call("asking who you are", self.get(paths::WHOAMI))
            .await
    }

    /// The orgs that the caller has a role in.
    pub async fn orgs(&self) -> Result<Vec<OrgRow>, ClientError> {
        self.call("listing orgs", self.get(paths::ORGS)).await
    }

    /// Makes an org.
    pub async fn create_org(&self, name: &OrgName) -> Result<OrgRow, ClientError> {
        let body = CreateOrgRequest { name: name.clone() };
        self.call("making an org", self.post(paths::ORGS).json(&body))
            .await
    }

    /// Removes an org that has no app.
    pub async fn remove_org(&self, name: &OrgName) -> Result<(), ClientError> {
        let path = paths::ORG.replace("{org}", name.as_str());
        let request = self.request(Method::DELETE, &path);
        self.call_empty("removing an org", request).await
    }

    /// The apps of the caller's orgs.
    pub async fn apps(&self) -> Result<Vec<AppRow>, ClientError> {
        self.pages("listing apps", paths::APPS, &AppsQuery::default())
            .await
    }

    /// Moves an app to another org.
    pub async fn move_app(&self, app: &AppName, org: &OrgName) -> Result<(), ClientError> {
        let body = MoveAppRequest { org: org.clone() };
        let path = paths::APP.replace("{app}", app.as_str());
        let request = self.request(Method::PUT, &path).json(&body);
        self.call_empty("moving an app", request).await
    }

    /// Frees the name of an app that has nothing.
    pub async fn remove_app(&self, app: &AppName) -> Result<(), ClientError> {
        let path = paths::APP.replace("{app}", app.as_str());
        let request = self.request(Method::DELETE, &path);
        self.call_empty("removing an app", request).await
    }

    /// The users that the caller sees.
    pub async fn users(&self) -> Result<Vec<UserRow>, ClientError> {
        self.pages("listing users", paths::USERS, &UsersQuery::default())
            .await
    }

    /// Gives a user a role, or takes it.
    pub async fn grant(&self, user: &UserName, request: &GrantRequest) -> Result<(), ClientError> {
        let request = self.request(Method::PUT, &user_path(user)).json(request);
        self.call_empty("changing a role", request).await
    }

    /// Removes a user.
    pub async fn remove_user(&self, user: &UserName) -> Result<(), ClientError> {
        let request = self.request(Method::DELETE, &user_path(user));
        self.call_empty("removing a user", request).await
    }

    /// The tokens of users that the caller sees: of one of them, or of all.
    pub async fn user_tokens(
        &self,
        user: Option<&UserName>,
    ) -> Result<Vec<UserTokenRow>, ClientError> {
        let query = UserTokensQuery {
            user: user.cloned(),
            ..UserTokensQuery::default()
        };
        self.pages("listing tokens", paths::USER_TOKENS, &query)
            .await
    }

    /// Makes a token of a user.
    pub async fn create_user_token(
        &self,
        request: &CreateUserTokenRequest,
    ) -> Result<CreateUserTokenResponse, ClientError> {
        let request = self.post(paths::USER_TOKENS).json(request);
        self.call("making a token", request).await
    }

    /// Revokes a token of a user.
    pub async fn revoke_user_token(&self, id: &str) -> Result<(), ClientError> {
        let path = paths::USER_TOKEN.replace("{token}", id);
        let request = self.request(Method::DELETE, &path);
        self.call_empty("revoking a token", request).await
    }
}

fn user_path(user: &UserName) -> String {
    // Of what a name may have, a path has everything but this as it is.
    let name = user.as_str().replace('+', "%2B");
    paths::USER.replace("{user}", &name)
}
