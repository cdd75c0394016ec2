//! Slots of a cluster: the slot of a key, and sets of slots.

/// The number of slots of a cluster.
pub(super) const SLOTS: usize = 16384;

/// A set of slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotSet(Box<[u64; SLOTS / 64]>);

impl SlotSet {
    pub(super) fn contains(&self, slot: u16) -> bool {
        self.0.get(usize::from(slot) / 64).is_some_and(|word| word >> (slot % 64) & 1 == 1)
    }

    pub(super) fn insert(&mut self, slot: u16) {
        if let Some(word) = self.0.get_mut(usize::from(slot) / 64) {
            *word |= 1 << (slot % 64);
        }
    }

    pub(super) fn extend(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0.iter()).for_each(|(word, other)| *word |= other);
    }

    #[cfg(feature = "redis-pool")]
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
}

impl FromIterator<u16> for SlotSet {
    fn from_iter<T: IntoIterator<Item = u16>>(slots: T) -> Self {
        let mut set = Self(Box::new([0; SLOTS / 64]));
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

/// Returns the slot of a key: of its hash tag, the text between the first braces, if there is one that isn't empty.
pub(super) fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty());
    crc16(tag.unwrap_or(key).as_bytes()) % SLOTS as u16
}

/// Computes CRC-16/XMODEM, as the Redis Cluster specification requires.
pub(super) fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc: u16, byte| {
        let high = (crc >> 8) ^ u16::from(*byte);
        (crc << 8) ^ REMAINDERS[usize::from(high & 0xff)]
    })
}

/// The remainder of each byte divided by x¹⁶ + x¹² + x⁵ + 1.
static REMAINDERS: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};
