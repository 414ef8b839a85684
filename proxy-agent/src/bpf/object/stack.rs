//! The stack that the programs need, counted as kernels before 6.6 count it (`check_max_stack_depth` in
//! `kernel/bpf/verifier.c`). These add the frames of all functions that call each other, each rounded up to
//! 32 bytes. Newer ones round less, so that only an old kernel would refuse a program with too much stack.

use std::collections::BTreeSet;

use aya_obj::Object;
use aya_obj::generated::bpf_insn;

use super::{OBJECT, PROGRAMS};

/// The kernel's `MAX_BPF_STACK`, in bytes.
const LIMIT: usize = 512;

const CLASS: u8 = 0x07;
const LOAD_INTO_REGISTER: u8 = 0x01;
const STORE_NUMBER: u8 = 0x02;
const STORE_REGISTER: u8 = 0x03;
const JUMPS: [u8; 2] = [0x05, 0x06];
const CALL: u8 = 0x85;
/// The value in the source register of a call to a function of the program, not to a helper.
const OWN_FUNCTION: u8 = 1;
const MOVE: u8 = 0xbf;
const ADD: u8 = 0x07;
/// The register with the end of the frame (r10).
const FRAME: u8 = 10;

/// A program followed by all its functions, as the kernel loads it.
struct Program<'a> {
    instructions: &'a [bpf_insn],
    starts: BTreeSet<usize>,
}

impl<'a> Program<'a> {
    fn new(instructions: &'a [bpf_insn]) -> Self {
        let starts = (0..instructions.len()).filter_map(|at| callee(instructions, at));
        Self {
            instructions,
            starts: starts.chain([0]).collect(),
        }
    }

    /// The stack in bytes of the function that starts here, with the deepest of the functions that it calls.
    fn depth(&self, start: usize) -> usize {
        let end = self.starts.range(start + 1..).next().copied();
        let body = start..end.unwrap_or(self.instructions.len());
        let frame = frame(&self.instructions[body.clone()]);
        let callees: BTreeSet<_> = body.filter_map(|at| callee(self.instructions, at)).collect();
        let below = callees.into_iter().map(|callee| self.depth(callee)).max();
        frame.max(1).next_multiple_of(32) + below.unwrap_or(0)
    }
}

/// The first instruction of the function that this instruction calls.
fn callee(instructions: &[bpf_insn], at: usize) -> Option<usize> {
    let instruction = &instructions[at];
    let is_call = instruction.code == CALL && instruction.src_reg() == OWN_FUNCTION;
    is_call
        .then(|| (at + 1).checked_add_signed(instruction.imm as isize))
        .flatten()
}

/// The bytes of stack that a function uses, by the frame's register or by a register copied from it.
fn frame(body: &[bpf_insn]) -> usize {
    let mut copies = BTreeSet::from([FRAME]);
    let mut lowest = 0;
    for instruction in body {
        let (to, from) = (instruction.dst_reg(), instruction.src_reg());
        match instruction.code {
            MOVE if from == FRAME => {
                copies.insert(to);
                continue;
            }
            ADD if copies.remove(&to) => lowest = lowest.min(instruction.imm),
            _ => {}
        }
        match instruction.code & CLASS {
            STORE_NUMBER | STORE_REGISTER if to == FRAME => lowest = lowest.min(i32::from(instruction.off)),
            LOAD_INTO_REGISTER if from == FRAME => lowest = lowest.min(i32::from(instruction.off)),
            _ => {}
        }
        let class = instruction.code & CLASS;
        let writes = !(class == STORE_NUMBER || class == STORE_REGISTER || JUMPS.contains(&class));
        if writes && to != FRAME {
            copies.remove(&to);
        }
    }
    lowest.unsigned_abs() as usize
}

#[test]
fn no_chain_of_calls_takes_more_stack_than_an_old_kernel_gives() {
    let mut object = Object::parse(OBJECT).expect("the embedded object is one");
    let sections = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections).expect("all functions are there");
    assert_eq!(object.programs.len(), PROGRAMS.len());
    let mut too_deep = Vec::new();
    let mut deepest = 0;
    for (name, program) in &object.programs {
        let function = &object.functions[&program.function_key()];
        let depth = Program::new(&function.instructions).depth(0);
        deepest = deepest.max(depth);
        if depth > LIMIT {
            too_deep.push(format!("{name}: {depth}"));
        }
    }
    assert!(
        too_deep.is_empty(),
        "more than {LIMIT} bytes of stack: {too_deep:?}"
    );
    assert!(
        deepest > 128,
        "{deepest} bytes of stack: the count has lost sight of it"
    );
}

#[test]
fn the_frames_of_functions_that_call_each_other_add_up() {
    fn instruction(code: u8, to: u8, from: u8, off: i16, imm: i32) -> bpf_insn {
        bpf_insn {
            code,
            _bitfield_align_1: [],
            _bitfield_1: bpf_insn::new_bitfield_1(to, from),
            off,
            imm,
        }
    }
    const EXIT: u8 = 0x95;
    let program = [
        // A store at 40 bytes below the end of the frame, then a call of the second function.
        instruction(0x7b, FRAME, 1, -40, 0),
        instruction(CALL, 0, OWN_FUNCTION, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
        // A pointer to 100 bytes below the end; a number that is no address; a call of the third.
        instruction(MOVE, 2, FRAME, 0, 0),
        instruction(ADD, 2, 0, 0, -100),
        instruction(ADD, 2, 0, 0, -300),
        instruction(CALL, 0, OWN_FUNCTION, 0, 1),
        instruction(EXIT, 0, 0, 0, 0),
        instruction(EXIT, 0, 0, 0, 0),
    ];
    assert_eq!(Program::new(&program).depth(0), 64 + 128 + 32);
}
