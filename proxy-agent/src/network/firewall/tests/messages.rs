//! Expressions of nftables' rules, as the kernel writes them into messages.

use super::*;

pub fn put(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

pub fn number(kind: u16, value: u32) -> Vec<u8> {
    put(kind, &value.to_be_bytes())
}

pub fn value(kind: u16, bytes: &[u8]) -> Vec<u8> {
    put(kind | NESTED, &put(1, bytes))
}

pub fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    put(
        1 | NESTED,
        &[put(1, &name), put(2 | NESTED, &data.concat())].concat(),
    )
}

pub fn payload(offset: u32, length: u32) -> Vec<u8> {
    expression(
        "payload",
        &[number(1, 1), number(2, 1), number(3, offset), number(4, length)],
    )
}

pub fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[number(2, key), number(1, 1)])
}

pub fn ct_state() -> Vec<u8> {
    expression("ct", &[number(2, 0), number(1, 1)])
}

pub fn bitwise(mask: &[u8]) -> Vec<u8> {
    let flip = vec![0; mask.len()];
    expression(
        "bitwise",
        &[
            number(1, 1),
            number(2, 1),
            number(3, mask.len() as u32),
            value(4, mask),
            value(5, &flip),
        ],
    )
}

pub fn cmp(operation: u32, with: &[u8]) -> Vec<u8> {
    expression("cmp", &[number(1, 1), number(2, operation), value(3, with)])
}

pub fn lookup(into: Option<u32>) -> Vec<u8> {
    let into = into.map(|register| number(3, register)).unwrap_or_default();
    expression("lookup", &[put(1, b"set\0"), number(2, 1), into])
}

pub fn counter() -> Vec<u8> {
    expression("counter", &[put(1, &[0; 8]), put(2, &[0; 8])])
}

pub fn verdict(code: i32, chain: &str) -> Vec<u8> {
    let mut verdict = number(1, code.cast_unsigned());
    if !chain.is_empty() {
        verdict.extend(put(2, &[chain.as_bytes(), &[0]].concat()));
    }
    expression(
        "immediate",
        &[number(1, 0), put(2 | NESTED, &put(2 | NESTED, &verdict))],
    )
}

pub fn accept() -> Vec<u8> {
    verdict(1, "")
}

pub fn rule(expressions: &[Vec<u8>]) -> Vec<u8> {
    expressions.concat()
}

pub fn source(bytes: &[u8]) -> Vec<u8> {
    rule(&[
        payload(12, bytes.len() as u32),
        cmp(0, bytes),
        counter(),
        accept(),
    ])
}

pub fn target(bytes: &[u8]) -> Vec<u8> {
    rule(&[
        payload(16, bytes.len() as u32),
        cmp(0, bytes),
        counter(),
        accept(),
    ])
}
