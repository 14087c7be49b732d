//! The hash of names that indexed directories are sorted by: half MD4 over unsigned bytes
//! (fs/ext4/hash.c).

/// The number of this hash in the root of an index; the superblock's flags say "unsigned".
pub(crate) const HALF_MD4: u8 = 1;

const ROUND2: u32 = 0x5a82_7999;
const ROUND3: u32 = 0x6ed9_eba1;
/// The kernel keeps this one for "the end of the directory".
const END_OF_DIRECTORY: u32 = 0xffff_fffe;

/// The major and the minor hash of a name.
pub(crate) fn hash(name: &[u8], seed: &[u32; 4]) -> (u32, u32) {
    let mut state = *seed;
    let mut rest = name;
    loop {
        transform(&mut state, &words(rest));
        if rest.len() <= 32 {
            break;
        }
        rest = &rest[32..];
    }
    let major = state[1] & !1;
    let major = if major == END_OF_DIRECTORY {
        END_OF_DIRECTORY - 2
    } else {
        major
    };
    (major, state[2])
}

/// The next 32 bytes as eight words; what is missing is filled with the length of what is left.
fn words(rest: &[u8]) -> [u32; 8] {
    let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
    let pad = length | (length << 8);
    let pad = pad | (pad << 16);
    let mut words = [pad; 8];
    for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
        *word = bytes
            .iter()
            .fold(pad, |value, byte| u32::from(*byte).wrapping_add(value << 8));
    }
    words
}

fn transform(state: &mut [u32; 4], x: &[u32; 8]) {
    let f = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let g = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let h = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let [mut a, mut b, mut c, mut d] = *state;
    let step = |function: &dyn Fn(u32, u32, u32) -> u32, a: u32, b, c, d, word: u32, turn| {
        a.wrapping_add(function(b, c, d))
            .wrapping_add(word)
            .rotate_left(turn)
    };
    let mut round =
        |function: &dyn Fn(u32, u32, u32) -> u32, add: u32, order: [usize; 8], turns: [u32; 4]| {
            for four in order.chunks_exact(4) {
                a = step(function, a, b, c, d, x[four[0]].wrapping_add(add), turns[0]);
                d = step(function, d, a, b, c, x[four[1]].wrapping_add(add), turns[1]);
                c = step(function, c, d, a, b, x[four[2]].wrapping_add(add), turns[2]);
                b = step(function, b, c, d, a, x[four[3]].wrapping_add(add), turns[3]);
            }
        };
    round(&f, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&g, ROUND2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&h, ROUND3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (word, value) in state.iter_mut().zip([a, b, c, d]) {
        *word = word.wrapping_add(value);
    }
}
