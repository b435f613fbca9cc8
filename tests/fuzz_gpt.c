/* Fuzz target of the checkpoint reader (example: 03_gpt). See fuzz.h; tests/fuzz_readers.sh builds and runs it. Its
   valid input is the checkpoint of a model with about two thousand weights.

   Each input is read twice: as it is, and with the size and the checksum that it should have, so that the checks behind
   those are reached. What is looked for: reads outside the file and other undefined behaviour (by the sanitizers), and
   files that are accepted though they are not what the program would write in the state they lead to (here). */

#include "fuzz.h"
#define main example_main
#include FUZZ_EXAMPLE
#undef main

static options fuzz_options;
static corpus fuzz_text;
static training fuzz_training;

/* A model of its own, made once. */
static training *fuzzed(void) {
  static const int64_t integer[INTEGERS] = {9, 1, 8, 1, 1, 8, 1, 5, 1, 0, 0, 0, 1, 1, 1, 0};
  training *t = &fuzz_training;
  if (t->opt) return t;
  memcpy(fuzz_options.integer, integer, sizeof integer);
  fuzz_options.rate = DEFAULT_RATE;
  fuzz_text.fingerprint = UINT64_C(0x123456789abcdef0);
  t->opt = &fuzz_options, t->text = &fuzz_text;
  fuzz_require(prepare(t) == 0, "no model to read checkpoints into");
  return t;
}

/* Accepted only what packing gives back, byte for byte. */
static void read_once(training *t, const uint8_t *data, size_t size) {
  uint8_t *again;
  if (check_checkpoint(t, "fuzz", data, (int64_t)size) != 0) return;
  take_checkpoint(t, data);
  fuzz_require((int64_t)size == checkpoint_bytes(t), "a checkpoint of another size was accepted");
  fuzz_require(t->step >= 0 && t->step <= t->total, "a step outside the schedule was accepted");
  again = pack_checkpoint(t, t->net.m, t->net.v, checkpoint_bytes(t));
  fuzz_require(again && memcmp(again, data, size) == 0, "a checkpoint was accepted that this state does not have");
  free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  training *t = fuzzed();
  uint8_t *sealed;
  read_once(t, data, size);
  if (size < 24) return 0;
  sealed = (uint8_t *)malloc(size);
  if (!sealed) exit(2);
  memcpy(sealed, data, size);
  memcpy(sealed, CHECKPOINT_MAGIC, 8);
  fuzz_put(sealed + 8, size, 8);
  fuzz_put(sealed + size - 8, fnv1a(FNV_START, sealed, (int64_t)size - 8), 8);
  read_once(t, sealed, size);
  free(sealed);
  return 0;
}

static size_t fuzz_seed(int number, uint8_t *to, size_t room) {
  training *t = fuzzed();
  const int64_t bytes = checkpoint_bytes(t);
  uint8_t *packed;
  if (number > 0) return 0;
  fuzz_require(bytes <= (int64_t)room, "the valid file is too long");
  initialise(&t->net, 1);
  t->step = t->total / 2;
  packed = pack_checkpoint(t, t->net.m, t->net.v, bytes);
  fuzz_require(packed != NULL, "no memory for the valid file");
  memcpy(to, packed, (size_t)bytes);
  free(packed);
  return (size_t)bytes;
}
