//! HTTP/2 as clients and instances see it: frames as bytes where the frames are the matter, h2's client and server where the messages are.

mod conformance;
mod floods;
mod h2c;
mod requests;
mod room;
mod websocket;
mod wire;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};

use super::*;

/// A client of HTTP/2.
#[derive(Clone)]
struct Client(SendRequest<Bytes>);

impl Client {
    async fn connect(edge: &TestEdge) -> Self {
        Self::of(edge, &mut h2::client::Builder::new()).await
    }

    async fn of(edge: &TestEdge, builder: &mut h2::client::Builder) -> Self {
        let handshake = builder.handshake(edge.connect().await);
        let (requests, connection) = soon(handshake).await.unwrap();
        tokio::spawn(connection);
        Self(requests)
    }

    /// Sends a request without a body.
    async fn ask(&self, request: Request<()>) -> Result<Response<h2::RecvStream>, h2::Error> {
        let mut requests = self.0.clone().ready().await?;
        let (response, _) = requests.send_request(request, true)?;
        soon(response).await
    }

    /// The status, the headers and the body of the answer to it.
    async fn get(&self, request: Request<()>) -> (u16, HeaderMap, String) {
        whole(self.ask(request).await.unwrap()).await
    }
}

fn request(method: &str, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

async fn whole(response: Response<h2::RecvStream>) -> (u16, HeaderMap, String) {
    let (parts, mut body) = response.into_parts();
    let text = text(&mut body).await;
    (parts.status.as_u16(), parts.headers, text)
}

/// All of a body.
async fn text(body: &mut h2::RecvStream) -> String {
    let mut bytes = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    String::from_utf8(bytes).unwrap()
}

/// Waits until it is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    soon(async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
