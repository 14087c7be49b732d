//! What RFC 9113 and RFC 7541 say of frames and header blocks that are odd or wrong: the cases of h2spec, as bytes, and what has to come of each.
//!
//! Every case is sent to an edge that runs, behind the preface and SETTINGS, and with a PING behind it: where the connection lives on, that is answered.
//!
//! What h2 cannot read as a frame, or as a header block, is PROTOCOL_ERROR to it, where the RFCs have FRAME_SIZE_ERROR and COMPRESSION_ERROR. The connection
//! ends in any case, which is what counts.

use super::wire::*;
use super::*;

const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const CLOSED: u32 = 5;
const REFUSED: u32 = 7;
const FRAME_SIZE: &[u32] = &[6, PROTOCOL];
const COMPRESSION: &[u32] = &[9, PROTOCOL];

const PROBE: &[u8; 8] = b"alive? !";

/// What has to come of it.
#[derive(Debug, Clone, Copy)]
enum Outcome {
    /// Nothing is wrong.
    Fine,
    /// Nothing is wrong, and stream 1 is answered.
    Answered,
    /// Stream 1 is answered by 400.
    Refused,
    /// The connection ends with one of these.
    Connection(&'static [u32]),
    /// This stream is reset with one of these, and the connection lives on.
    Stream(u32, &'static [u32]),
    /// The RFC leaves it open which of both: one of these codes.
    Either(&'static [u32]),
    /// The stream is refused, the connection ended, or it is passed over: the RFC allows each.
    Any,
}

use Outcome::{Answered, Any, Connection, Either, Fine, Refused, Stream};

struct Case {
    name: &'static str,
    bytes: Vec<u8>,
    /// What is sent when stream 1 was answered.
    then: Vec<u8>,
    outcome: Outcome,
}

fn case(name: &'static str, frames: &[Vec<u8>], outcome: Outcome) -> Case {
    Case {
        name,
        bytes: frames.concat(),
        then: Vec::new(),
        outcome,
    }
}

/// A whole request, and these frames when it was answered.
fn after_answer(name: &'static str, frames: &[Vec<u8>], outcome: Outcome) -> Case {
    Case {
        name,
        bytes: get(1),
        then: frames.concat(),
        outcome,
    }
}

fn ping() -> Vec<u8> {
    frame(PING, 0, 0, b"a frame.")
}

fn with(fields: &[(&'static str, &'static str)]) -> Vec<u8> {
    headers(END_HEADERS | END_STREAM, 1, &[GET, fields].concat())
}

fn without(name: &str) -> Vec<u8> {
    let fields: Vec<_> = GET.iter().copied().filter(|(is, _)| *is != name).collect();
    headers(END_HEADERS | END_STREAM, 1, &fields)
}

/// A request's frame with these bytes behind its block.
fn with_block(rest: &[u8]) -> Vec<u8> {
    let all = [&block(GET)[..], rest].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &all)
}

fn data(flags: u8, stream: u32, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, flags, stream, bytes)
}

/// A request's block in so many pieces.
fn in_pieces(pieces: usize) -> Vec<Vec<u8>> {
    let block = block(GET);
    let length = block.len().div_ceil(pieces);
    let mut frames = Vec::new();
    for (at, piece) in block.chunks(length).enumerate() {
        let is_last = (at + 1) * length >= block.len();
        let end = if is_last { END_HEADERS } else { 0 };
        frames.push(if at == 0 {
            frame(HEADERS, END_STREAM | end, 1, piece)
        } else {
            frame(CONTINUATION, end, 1, piece)
        });
    }
    frames
}

#[rustfmt::skip]
fn frames() -> Vec<Case> {
    let half = || frame(HEADERS, END_STREAM, 1, &block(GET));
    let goes_on = |flags, stream| frame(CONTINUATION, flags, stream, &block(&[("x", "y")]));
    let mut reserved_bit = get(1);
    reserved_bit[5] |= 0x80;
    vec![
        case("a request", &[get(1)], Answered),
        case("a request with a body", &[post(1), data(END_STREAM, 1, b"body")], Answered),
        case("a body with padding", &[post(1), data(PADDED | END_STREAM, 1, b"\x02ab\0\0")], Answered),
        case("a body of two frames", &[post(1), data(0, 1, b"bo"), data(END_STREAM, 1, b"dy")], Answered),
        case("a body that ends with an empty frame", &[post(1), data(0, 1, b"a"), data(END_STREAM, 1, b"")], Answered),
        case("trailers", &[post(1), data(0, 1, b"a"), headers(END_HEADERS | END_STREAM, 1, &[("x", "y")])], Answered),
        case("4.1 a frame of an unknown type", &[frame(77, 0, 0, b"what"), frame(77, 255, 1, b""), get(1)], Answered),
        case("4.1 flags that are not defined", &[frame(PING, 0x16, 0, b"01234567"), get(1)], Answered),
        case("4.1 the reserved bit", &[reserved_bit], Answered),
        case("4.2 the largest frame", &[post(1), data(END_STREAM, 1, &[b'x'; 16_384])], Answered),
        case("4.2 too large DATA", &[post(1), data(END_STREAM, 1, &[b'x'; 16_385])], Either(FRAME_SIZE)),
        case("4.2 too large HEADERS", &[frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0; 16_385])], Connection(FRAME_SIZE)),
        case("4.3 a frame within a block", &[half(), ping()], Connection(&[PROTOCOL])),
        case("4.3 another stream's HEADERS within a block", &[half(), get(3)], Connection(&[PROTOCOL])),
        case("5.5 an unknown frame within a block", &[half(), frame(77, 0, 1, b"")], Connection(&[PROTOCOL])),
        case("6.1 DATA of stream 0", &[data(END_STREAM, 0, b"a")], Connection(&[PROTOCOL])),
        case("6.1 as much padding as there is", &[post(1), data(PADDED | END_STREAM, 1, b"\x05abcd")], Connection(&[PROTOCOL])),
        case("6.2 HEADERS with priority and padding", &[frame(HEADERS, END_HEADERS | END_STREAM | PADDED | PRIORITIZED, 1, &[&[2, 0, 0, 0, 0, 9][..], &block(GET), b"\0\0"].concat())], Answered),
        case("6.2 HEADERS of stream 0", &[headers(END_HEADERS | END_STREAM, 0, GET)], Connection(&[PROTOCOL])),
        case("6.2 HEADERS with as much padding as there is", &[frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &[&[200][..], &block(GET)].concat())], Connection(&[PROTOCOL])),
        case("6.3 PRIORITY of an idle stream", &[frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 9]), get(1)], Answered),
        case("6.3 PRIORITY of stream 0", &[frame(PRIORITY, 0, 0, &[0, 0, 0, 1, 9])], Connection(&[PROTOCOL])),
        case("6.3 PRIORITY of 4 bytes", &[post(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 1])], Either(FRAME_SIZE)),
        case("5.3.1 a stream that depends on itself", &[frame(HEADERS, END_HEADERS | END_STREAM | PRIORITIZED, 1, &[&[0, 0, 0, 1, 9][..], &block(GET)].concat())], Any),
        case("6.4 RST_STREAM of stream 0", &[reset(0, 8)], Connection(&[PROTOCOL])),
        case("6.4 RST_STREAM of an idle stream", &[reset(1, 8)], Connection(&[PROTOCOL])),
        case("6.4 RST_STREAM of 3 bytes", &[post(1), frame(RST_STREAM, 0, 1, &[0, 0, 8])], Connection(FRAME_SIZE)),
        case("7 RST_STREAM of an unknown code", &[post(1), reset(1, 0xffff)], Fine),
        case("6.5 SETTINGS ACK with a payload", &[frame(SETTINGS, ACK, 0, &[0, 1, 0, 0, 0, 1])], Connection(FRAME_SIZE)),
        case("6.5 SETTINGS of a stream", &[frame(SETTINGS, 0, 1, &[])], Connection(&[PROTOCOL])),
        case("6.5 SETTINGS of 5 bytes", &[frame(SETTINGS, 0, 0, &[0, 1, 0, 0, 0])], Connection(FRAME_SIZE)),
        case("6.5.2 ENABLE_PUSH of 2", &[settings(&[(2, 2)])], Connection(&[PROTOCOL])),
        case("6.5.2 a window that is too large", &[settings(&[(4, 1 << 31)])], Connection(&[FLOW_CONTROL, PROTOCOL])),
        case("6.5.2 frames that are too small", &[settings(&[(5, 16_383)])], Connection(&[PROTOCOL])),
        case("6.5.2 frames that are too large", &[settings(&[(5, 1 << 24)])], Connection(&[PROTOCOL])),
        case("6.5.2 a setting that is not known", &[settings(&[(255, 1)]), get(1)], Answered),
        case("6.7 PING", &[ping()], Fine),
        case("6.7 PING of a stream", &[frame(PING, 0, 1, b"01234567")], Connection(&[PROTOCOL])),
        case("6.7 PING of 6 bytes", &[frame(PING, 0, 0, b"012345")], Connection(FRAME_SIZE)),
        case("6.7 the answer to a PING that was never sent", &[frame(PING, ACK, 0, b"01234567")], Fine),
        case("6.8 GOAWAY of a stream", &[frame(GOAWAY, 0, 1, &[0; 8])], Connection(&[PROTOCOL])),
        case("6.9 a window of 0 more, of the connection", &[window_update(0, 0)], Connection(&[PROTOCOL])),
        case("6.9 a window of 0 more, of a stream", &[post(1), window_update(1, 0)], Either(&[PROTOCOL])),
        case("6.9 WINDOW_UPDATE of 3 bytes", &[frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1])], Connection(FRAME_SIZE)),
        case("6.9.1 a window beyond the largest, of the connection", &[window_update(0, (1 << 31) - 1), window_update(0, (1 << 31) - 1)], Connection(&[FLOW_CONTROL])),
        case("6.9.1 a window beyond the largest, of a stream", &[post(1), window_update(1, (1 << 31) - 1), window_update(1, (1 << 31) - 1)], Stream(1, &[FLOW_CONTROL])),
        case("6.9.2 a window beyond the largest, by SETTINGS", &[post(1), window_update(1, (1 << 31) - 65_536), settings(&[(4, (1 << 31) - 1)])], Connection(&[FLOW_CONTROL])),
        case("6.10 a block in two pieces", &in_pieces(2), Answered),
        case("6.10 a block in five pieces", &in_pieces(5), Answered),
        case("6.10 a block with an empty piece", &[frame(HEADERS, END_STREAM, 1, &block(GET)), frame(CONTINUATION, END_HEADERS, 1, b"")], Answered),
        case("6.10 CONTINUATION of stream 0", &[half(), goes_on(END_HEADERS, 0)], Connection(&[PROTOCOL])),
        case("6.10 CONTINUATION of another stream", &[half(), goes_on(END_HEADERS, 3)], Connection(&[PROTOCOL])),
        case("6.10 CONTINUATION behind a block", &[post(1), goes_on(END_HEADERS, 1)], Connection(&[PROTOCOL])),
        case("6.10 CONTINUATION behind the last piece", &[frame(HEADERS, 0, 1, &block(POST)), goes_on(END_HEADERS, 1), goes_on(END_HEADERS, 1)], Connection(&[PROTOCOL])),
        case("6.10 CONTINUATION behind DATA", &[post(1), data(0, 1, b"a"), goes_on(END_HEADERS, 1)], Connection(&[PROTOCOL])),
        case("7 GOAWAY of an unknown code", &[frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 255])], Any),
        case("8.4 PUSH_PROMISE of a client", &[post(1), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &block(GET)].concat())], Connection(&[PROTOCOL])),
    ]
}

#[rustfmt::skip]
fn states() -> Vec<Case> {
    let trailers = |stream| headers(END_HEADERS | END_STREAM, stream, &[("x", "y")]);
    let too_many: Vec<_> = (0..=crate::limits::MAX_STREAMS).map(|at| post(2 * at + 1)).collect();
    vec![
        case("5.1 DATA of an idle stream", &[data(END_STREAM, 1, b"a")], Connection(&[PROTOCOL])),
        case("5.1 WINDOW_UPDATE of an idle stream", &[window_update(1, 100)], Connection(&[PROTOCOL])),
        case("5.1 CONTINUATION of an idle stream", &[frame(CONTINUATION, END_HEADERS, 1, &block(GET))], Connection(&[PROTOCOL])),
        case("5.1 DATA of a stream that the client closed", &[post(1), reset(1, 8), data(END_STREAM, 1, b"a")], Either(&[CLOSED, PROTOCOL])),
        case("5.1 HEADERS of a stream that the client closed", &[post(1), reset(1, 8), trailers(1)], Either(&[CLOSED, PROTOCOL])),
        case("5.1 WINDOW_UPDATE of a stream that the client closed", &[post(1), reset(1, 8), window_update(1, 5)], Fine),
        case("5.1 PRIORITY of a stream that the client closed", &[post(1), reset(1, 8), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])], Fine),
        case("5.1 RST_STREAM of a stream that the client closed", &[post(1), reset(1, 8), reset(1, 8)], Any),
        case("5.1 WINDOW_UPDATE of a request that was sent", &[get(1), window_update(1, 100)], Answered),
        case("5.1 PRIORITY of a request that was sent", &[get(1), frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])], Answered),
        case("5.1 DATA behind the end of a request", &[get(1), data(END_STREAM, 1, b"a")], Either(&[CLOSED, PROTOCOL])),
        case("5.1 HEADERS behind the end of a request", &[get(1), trailers(1)], Either(&[CLOSED, PROTOCOL])),
        after_answer("5.1 DATA of a stream that is over", &[data(END_STREAM, 1, b"a")], Either(&[CLOSED, PROTOCOL])),
        after_answer("5.1 HEADERS of a stream that is over", &[trailers(1)], Either(&[CLOSED, PROTOCOL])),
        after_answer("5.1 CONTINUATION of a stream that is over", &[frame(CONTINUATION, END_HEADERS, 1, &block(GET))], Connection(&[CLOSED, PROTOCOL])),
        after_answer("5.1 WINDOW_UPDATE of a stream that is over", &[window_update(1, 5)], Fine),
        after_answer("5.1 PRIORITY of a stream that is over", &[frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9])], Fine),
        after_answer("5.1 RST_STREAM of a stream that is over", &[reset(1, 8)], Fine),
        case("5.1.1 a stream of an even number", &[get(2)], Connection(&[PROTOCOL])),
        case("5.1.1 a stream of a smaller number", &[post(5), get(3)], Connection(&[PROTOCOL, CLOSED])),
        case("5.1.2 more streams than there may be", &too_many, Stream(2 * crate::limits::MAX_STREAMS + 1, &[REFUSED, PROTOCOL])),
    ]
}

#[rustfmt::skip]
fn messages() -> Vec<Case> {
    let malformed = Stream(1, &[PROTOCOL]);
    let whole = END_HEADERS | END_STREAM;
    let length = |length, flags| headers(flags, 1, &[POST, &[("content-length", length)]].concat());
    vec![
        case("8.1 HEADERS behind HEADERS without an end", &[post(1), headers(END_HEADERS, 1, &[("x", "y")]), data(END_STREAM, 1, b"")], Either(&[PROTOCOL])),
        // h2 leaves it out of the trailers, and no more: nobody sees it.
        case("8.1 a pseudo-header in trailers", &[post(1), headers(whole, 1, &[(":method", "GET")])], Any),
        case("8.2.1 a name in upper case", &[with(&[("X-Test", "y")])], Either(&[PROTOCOL])),
        case("8.2.1 a name with a space", &[with(&[("x test", "y")])], Either(&[PROTOCOL])),
        case("8.2.1 an empty name", &[with(&[("", "y")])], Either(&[PROTOCOL])),
        case("8.2.1 a line feed in a value", &[with(&[("x", "a\nb: c")])], Either(&[PROTOCOL])),
        case("8.2.1 a carriage return in a value", &[with(&[("x", "a\rb")])], Either(&[PROTOCOL])),
        case("8.2.1 a NUL in a value", &[with(&[("x", "a\0b")])], Either(&[PROTOCOL])),
        case("8.2.1 a space around a value", &[with(&[("x", " y")])], malformed),
        case("8.2.2 connection", &[with(&[("connection", "keep-alive")])], malformed),
        case("8.2.2 proxy-connection", &[with(&[("proxy-connection", "keep-alive")])], malformed),
        case("8.2.2 keep-alive", &[with(&[("keep-alive", "1")])], malformed),
        case("8.2.2 transfer-encoding", &[with(&[("transfer-encoding", "chunked")])], malformed),
        case("8.2.2 upgrade", &[with(&[("upgrade", "websocket")])], malformed),
        case("8.2.2 te", &[with(&[("te", "trailers, deflate")])], malformed),
        case("8.2.2 te: trailers", &[with(&[("te", "trailers")])], Answered),
        case("8.3 an unknown pseudo-header", &[with(&[(":test", "ok")])], Either(&[PROTOCOL])),
        case("8.3 a pseudo-header of answers", &[with(&[(":status", "200")])], malformed),
        case("8.3 a pseudo-header behind a header", &[headers(whole, 1, &[GET[0], GET[1], GET[2], ("x", "y"), GET[3]])], malformed),
        case("8.3.1 no :method", &[without(":method")], malformed),
        case("8.3.1 no :scheme", &[without(":scheme")], malformed),
        case("8.3.1 no :path", &[without(":path")], malformed),
        case("8.3.1 an empty :path", &[headers(whole, 1, &[GET[0], GET[1], (":path", ""), GET[3]])], malformed),
        case("8.3.1 :method twice", &[headers(whole, 1, &[GET[0], GET[0], GET[1], GET[2], GET[3]])], malformed),
        case("8.3.1 :scheme twice", &[headers(whole, 1, &[GET[0], GET[1], GET[1], GET[2], GET[3]])], malformed),
        case("8.3.1 :path twice", &[headers(whole, 1, &[GET[0], GET[1], GET[2], GET[2], GET[3]])], malformed),
        case("8.3.1 :authority twice", &[headers(whole, 1, &[GET[0], GET[1], GET[2], GET[3], GET[3]])], malformed),
        case("8.3.1 no :authority and no host", &[without(":authority")], Refused),
        case("8.3.1 a host in the place of :authority", &[headers(whole, 1, &[GET[0], GET[1], GET[2], ("host", "a.test")])], Answered),
        case("8.3.1 the same host", &[with(&[("host", "A.test")])], Answered),
        case("8.3.1 another host", &[with(&[("host", "b.test")])], Refused),
        case("8.3.1 a path without a slash", &[headers(whole, 1, &[GET[0], GET[1], (":path", "x"), GET[3]])], Any),
        case("8.3.1 a space in the path", &[headers(whole, 1, &[GET[0], GET[1], (":path", "/ HTTP/1.1"), GET[3]])], malformed),
        case("8.3.1 a line feed in the path", &[headers(whole, 1, &[GET[0], GET[1], (":path", "/\r\nx: y"), GET[3]])], malformed),
        case("8.3.1 a line feed in the authority", &[headers(whole, 1, &[GET[0], GET[1], GET[2], (":authority", "a.test\r\nx: y")])], malformed),
        case("8.3.1 a user in the authority", &[headers(whole, 1, &[GET[0], GET[1], GET[2], (":authority", "u@a.test")])], Refused),
        case("8.3.1 a line feed in the method", &[headers(whole, 1, &[(":method", "GET / HTTP/1.1\r\n"), GET[1], GET[2], GET[3]])], Either(&[PROTOCOL])),
        case("8.1.1 a content-length that is too short", &[length("1", END_HEADERS), data(END_STREAM, 1, b"ab")], malformed),
        case("8.1.1 a content-length that is too long", &[length("3", END_HEADERS), data(END_STREAM, 1, b"ab")], malformed),
        case("8.1.1 a content-length of several frames", &[length("4", END_HEADERS), data(0, 1, b"ab"), data(END_STREAM, 1, b"c")], malformed),
        case("8.1.1 a content-length without a body", &[length("1", whole)], malformed),
        case("8.1.1 a content-length that is right", &[length("2", END_HEADERS), data(END_STREAM, 1, b"ab")], Answered),
        case("8.1.1 a content-length that is no number", &[length("+2", END_HEADERS), data(END_STREAM, 1, b"ab")], malformed),
        case("8.5 :path in CONNECT", &[headers(whole, 1, &[(":method", "CONNECT"), GET[2], GET[3]])], malformed),
        case("RFC 8441 :protocol without CONNECT", &[with(&[]), headers(whole, 3, &[(":protocol", "websocket"), GET[0], GET[1], GET[2], GET[3]])], Stream(3, &[PROTOCOL])),
    ]
}

#[rustfmt::skip]
fn header_compression() -> Vec<Case> {
    let wrong = Connection(COMPRESSION);
    // `:method` GET, `:scheme` http and `:path` / of the static table, then the authority.
    let indexed = |authority: &[u8]| {
        let block = [&[0x82, 0x86, 0x84][..], authority].concat();
        frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)
    };
    vec![
        case("RFC 7541, 2.3.1 the static table", &[indexed(b"\x01\x06a.test")], Answered),
        case("6.2.1 a literal that is indexed, and used again", &[indexed(b"\x41\x06a.test"), frame(HEADERS, END_HEADERS | END_STREAM, 3, &[0x82, 0x86, 0x84, 0xbe])], Answered),
        case("6.2.3 a literal that is never indexed", &[indexed(b"\x11\x06a.test")], Answered),
        case("5.2 Huffman", &[indexed(b"\x01\x85\x18\x25\x28\x4a\x4f")], Any),
        case("6.3 a smaller table", &[frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&[0x20, 0x82, 0x86, 0x84][..], b"\x01\x06a.test"].concat())], Answered),
        case("2.3.3 an index beyond the tables", &[with_block(&[0xff, 0x80, 0x01])], wrong),
        case("6.1 index 0", &[with_block(&[0x80])], wrong),
        case("6.2.1 a literal with an index beyond the tables", &[with_block(b"\x7f\x80\x01\x01a")], wrong),
        case("4.2 a size of the table behind headers", &[with_block(&[0x21])], wrong),
        case("6.3 a larger table than was allowed", &[frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&[0x3f, 0xe2, 0x1f][..], &block(GET)].concat())], wrong),
        case("5.2 Huffman padding of more than 7 bits", &[with_block(b"\0\x85\xf2\xb2\x4a\x84\xff\x84\x49\x50\x9f\xff")], wrong),
        case("5.2 Huffman padding of zeros", &[with_block(b"\0\x85\xf2\xb2\x4a\x84\xff\x83\x49\x50\x90")], wrong),
        case("5.2 the end of the alphabet in Huffman", &[with_block(b"\0\x85\xf2\xb2\x4a\x84\xff\x87\x49\x51\xff\xff\xff\xfa\x7f")], wrong),
        case("5.1 an integer without an end", &[with_block(&[0xff; 20])], wrong),
        case("5.2 a text that is longer than the block", &[with_block(b"\0\x20ab")], wrong),
    ]
}

async fn check(edge: &TestEdge, case: &Case) -> Result<(), String> {
    let mut wire = Wire::connect(edge).await;
    wire.send(&case.bytes).await;
    let probe = frame(PING, 0, 0, PROBE);
    if case.then.is_empty() {
        wire.send(&probe).await;
    }
    let mut seen = Vec::new();
    let (mut is_alive, mut goaway, mut is_answered) = (false, None, false);
    let needs_answer = matches!(case.outcome, Answered | Refused) || !case.then.is_empty();
    let mut was_reset = Vec::new();
    loop {
        let needs_reset = match case.outcome {
            Stream(stream, _) => !was_reset.contains(&stream),
            Either(_) => !was_reset.contains(&1),
            _ => false,
        };
        if is_alive && !needs_reset && (!needs_answer || is_answered) {
            break;
        }
        let next = tokio::time::timeout(Duration::from_secs(2), wire.next());
        let Ok(Some(frame)) = next.await else {
            break;
        };
        if frame.kind == RST_STREAM {
            was_reset.push(frame.stream);
        }
        if frame.is(PING, 0) && frame.flags & ACK != 0 && frame.payload == PROBE {
            is_alive = true;
        }
        if frame.kind == GOAWAY {
            goaway = Some(frame.code());
            break;
        }
        if frame.stream == 1 && frame.ends_stream() && !is_answered {
            is_answered = true;
            if !case.then.is_empty() {
                wire.send(&[&case.then[..], &probe].concat()).await;
            }
        }
        seen.push(frame);
    }
    let reset = |stream: u32| {
        let mut resets = seen.iter().filter(|frame| frame.is(RST_STREAM, stream));
        resets.next().map(Frame::code)
    };
    // `:status` of the static table: 200 is 8, 400 is 12.
    let status = |code: u8| {
        let mut heads = seen.iter().filter(|frame| frame.is(HEADERS, 1));
        heads
            .next()
            .is_some_and(|head| head.payload[0] == 0x80 | code)
    };
    let is_as_wanted = match case.outcome {
        Fine => is_alive && goaway.is_none(),
        Answered => is_answered && status(8) && goaway.is_none(),
        Refused => is_answered && status(12) && goaway.is_none(),
        Connection(codes) => goaway.is_some_and(|code| codes.contains(&code)),
        Stream(stream, codes) => {
            is_alive && reset(stream).is_some_and(|code| codes.contains(&code))
        }
        Either(codes) => {
            let code = goaway.or(reset(1));
            code.is_some_and(|code| codes.contains(&code))
        }
        Any => is_alive || goaway.is_some(),
    };
    if is_as_wanted {
        return Ok(());
    }
    Err(format!(
        "{}: wanted {:?}, got GOAWAY {goaway:?}, alive {is_alive}, {seen:?}\n",
        case.name, case.outcome
    ))
}

#[tokio::test]
async fn frames_states_messages_and_header_blocks_are_those_of_the_rfcs() {
    // Reads each request and its body, as far as that comes.
    let backend = backend(|mut stream| async move {
        while !head(&mut stream).await.is_empty() {
            answer(&mut stream, "ok").await;
        }
    });
    let edge = TestEdge::start(&[backend.await]).await;
    let tables = [frames(), states(), messages(), header_compression()];
    let cases: Vec<Case> = tables.into_iter().flatten().collect();
    assert!(cases.len() > 130, "{}", cases.len());
    let mut wrong = String::new();
    for case in &cases {
        if let Err(what) = check(&edge, case).await {
            wrong.push_str(&what);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
    // None of it has done the edge any harm.
    let client = super::Client::connect(&edge).await;
    let (status, _, body) = client.get(request("GET", "http://a.test/")).await;
    assert_eq!((status, body.as_str()), (200, "ok"));
    until(|| edge.edge.streams.available_permits() == crate::limits::MAX_ALL_STREAMS).await;
}

#[tokio::test]
async fn what_does_not_begin_with_the_preface_is_no_http_2() {
    let edge = TestEdge::start(&[]).await;
    // To the port for both versions it is a request of HTTP/1, and a wrong one.
    for (begin, wanted) in [
        (&b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n"[..], &b""[..]),
        (b"PRI * HTTP/2.1\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 505 "),
        (b"PRI / HTTP/2.0\r\n\r\nSM\r\n\r\n", b"HTTP/1.1 505 "),
        (
            b"PRI * HTTP/2.0\r\nHost: a.test\r\n\r\nSM\r\n\r\n",
            b"HTTP/1.1 505 ",
        ),
    ] {
        let mut wire = Wire::raw(&edge).await;
        wire.send(begin).await;
        let mut answer = Vec::new();
        let _ = soon(wire.0.read_to_end(&mut answer)).await;
        if wanted.is_empty() {
            // The SETTINGS of the edge, and no more.
            assert_eq!(answer.get(3), Some(&SETTINGS), "{answer:?}");
        } else {
            assert!(
                answer.starts_with(wanted),
                "{}",
                String::from_utf8_lossy(&answer)
            );
        }
    }
    // What is not SETTINGS behind the preface is a connection error.
    let mut wire = Wire::raw(&edge).await;
    wire.send(&[PREFACE, &frame(DATA, 0, 1, b"a")].concat())
        .await;
    assert_eq!(wire.goaway().await, Some(PROTOCOL));
    // The preface may come byte by byte.
    let mut wire = Wire::raw(&edge).await;
    for byte in [PREFACE, &settings(&[]), &frame(PING, 0, 0, PROBE)].concat() {
        wire.send(&[byte]).await;
    }
    let pong = wire.find(|frame| frame.is(PING, 0)).await.unwrap();
    assert_eq!((pong.flags, &pong.payload[..]), (ACK, &PROBE[..]));
}

/// Waits for the answer to stream 1, and gives how its body was cut into frames.
async fn pieces(wire: &mut Wire) -> Vec<usize> {
    let mut pieces = Vec::new();
    loop {
        let frame = wire.next().await.unwrap();
        if frame.is(DATA, 1) {
            pieces.push(frame.payload.len());
        }
        if frame.stream == 1 && frame.ends_stream() {
            return pieces;
        }
    }
}

#[tokio::test]
async fn settings_are_acknowledged_and_the_windows_of_the_client_are_kept() {
    let edge = TestEdge::start(&[replies_with("0123456789").await]).await;
    // 6.5.3: of a setting that comes twice the last one counts; then the window is opened bit by bit.
    let mut wire = Wire::raw(&edge).await;
    let begin = [PREFACE, &settings(&[(4, 100), (4, 3)]), &get(1)].concat();
    wire.send(&begin).await;
    let ack = wire.find(|frame| frame.is(SETTINGS, 0) && frame.flags & ACK != 0);
    assert!(ack.await.is_some());
    let first = wire.find(|frame| frame.is(DATA, 1)).await.unwrap();
    assert_eq!(first.payload, b"012");
    // Nothing more comes before there is a window for it.
    wire.send(&frame(PING, 0, 0, PROBE)).await;
    let next = wire.find(|frame| !frame.is(SETTINGS, 0)).await.unwrap();
    assert!(next.is(PING, 0), "{next:?}");
    wire.send(&window_update(1, 2)).await;
    assert_eq!(wire.next().await.unwrap().payload, b"34");
    // 6.9.2: a window that SETTINGS makes smaller than nothing.
    wire.send(&[settings(&[(4, 0)]), window_update(1, 2)].concat())
        .await;
    wire.send(&frame(PING, 0, 0, PROBE)).await;
    let next = wire.find(|frame| !frame.is(SETTINGS, 0)).await.unwrap();
    assert!(next.is(PING, 0), "{next:?}");
    wire.send(&settings(&[(4, 65_535)])).await;
    assert_eq!(pieces(&mut wire).await.iter().sum::<usize>(), 5);
    // 6.9.1: the window of the connection.
    let edge = TestEdge::start(&[replies_with(LONG).await]).await;
    let mut wire = Wire::raw(&edge).await;
    let begin = [PREFACE, &settings(&[(4, 1 << 20)]), &get(1)].concat();
    wire.send(&begin).await;
    let mut bytes = 0;
    while bytes < 65_535 {
        let frame = wire.find(|frame| frame.is(DATA, 1)).await.unwrap();
        assert!(frame.payload.len() <= 16_384);
        bytes += frame.payload.len();
    }
    assert_eq!(bytes, 65_535);
    wire.send(&window_update(0, 1 << 20)).await;
    assert_eq!(
        pieces(&mut wire).await.iter().sum::<usize>(),
        LONG.len() - 65_535
    );
}

const LONG: &str = match str::from_utf8(&[b'x'; 100_000]) {
    Ok(text) => text,
    Err(_) => "",
};
