/* group.pml - the protocol of mlk_group as a model for the checker spin; tests/model.sh runs it.

   What is in it: opening, the ring of decisions, begin, publish, average, finish, ranks that are left out and come back, dead
   ones that are replaced. A rank that is stopped for a while is a process that is not scheduled, so every stop and
   every wake-up is among the interleavings. Gradients are tags: slot[r] is the step of what rank r wrote last.

   What it leaves out, and why nothing is lost:
     - One element for a slot, one slot for a read. An element is written once a step and read at one moment; which slot
       of the mask is read is chosen freely. So a torn or overwritten mean is a read of some element with another tag.
     - One bucket, one share for each rank. That other buckets take time is the time from published to complete.
     - Words that only grow are looked at together: the last look of a sequence would see the same.
     - Who is proposed for a step: every set with the proposer in it, a superset of what the code takes.
     - Joining: whoever asks may or may not be taken in, which stands for every rule that tells a fresh request.
     - MLK_LOSS_FAILS is MLK_LOSS_SHRINKS with as many ranks demanded as there are: MIN = N.
     - The ring has two words, the least that works; the code has eight.
     - Memory is sequentially consistent: what fences are for is in the comments of mlk.h, not here.

   Settings (-D):
     N         ranks, 2 or 3                      STEPS    of the run
     MIN       ranks a step needs                 REJOINS  how often in all a rank comes back or is replaced
     DEADLINES 1: whoever waits may lose patience with any rank at any moment, whatever that rank has done, which
               includes decisions made on what was seen long before. 0: only the dead are given up; then nobody
               may get stuck either, and without deaths (DEATHS = 0) all ranks are in all steps
     DEATHS    how many ranks may die, at any point
     TWO_SHOT  1: an element is averaged by the rank it belongs to, and read there by the others
     OPENS     1: nobody is there at first, and whoever comes waits for all; 0: all have come
     MUTANT    0: the protocol; else one of its rules is gone, and spin has to find what goes wrong: see below.

   Asserted: the comments "property". */

#ifndef N
#define N 2
#endif
#ifndef STEPS
#define STEPS 2
#endif
#ifndef MIN
#define MIN 1
#endif
#ifndef REJOINS
#define REJOINS 0
#endif
#ifndef DEADLINES
#define DEADLINES 1
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef TWO_SHOT
#define TWO_SHOT 0
#endif
#ifndef OPENS
#define OPENS 0
#endif
#ifndef MUTANT
#define MUTANT 0
#endif
#define RING 2

/* The rules, each missing in one mutant. */
#define WAITS_FOR_DONE     (MUTANT != 1)  /* slots are overwritten after all members have read them */
#define LOOKS_AFTERWARDS   (MUTANT != 2)  /* a rank looks whether the next step was begun without it */
#define LOOKS_LATE         (MUTANT != 3)  /* ... after it has read, not before */
#define COMMITS_BY_SWAP    (MUTANT != 4)  /* the decision is a compare-and-swap, not a store */
#define REMOVES_BY_SWAP    (MUTANT != 5)  /* so is the removal of a lost rank */
#define AVERAGES_AGAIN     (MUTANT != 6)  /* what was averaged with other members than the decided is averaged again */
#define COMMITS_COMPLETE   (MUTANT != 7)  /* a step is decided when all its members have published */
#define KNOWS_ITS_PLACE    (MUTANT != 8)  /* a rank that is not in the mask is left out */
#define DATA_FIRST         (MUTANT != 9)  /* the slot is written before it is announced */
#define LEAVES_OLD_STEP    (MUTANT != 10) /* a replacement takes its rank out of the step that its predecessor was in */
#define JOINS_AS_NEW       (MUTANT != 11) /* ... and of one that was begun with the predecessor in mind */
#define JOINER_NEEDS_GIVER (MUTANT != 12) /* a joiner leaves when nobody is left who could bring it up to date */
#define JOINS_AGAIN        (MUTANT != 13) /* who joined a step that failed joins the next one again */
#define MARKS_RANGE        (MUTANT != 14) /* two shots: the words of a range name the mask it is the mean of */
#define RANGE_BEFORE_WORDS (MUTANT != 15) /* two shots: the words come after the range */
#define KNOWS_REPLACED     (MUTANT != 16) /* two shots: nobody waits for a range that a replaced rank owed */
#define KNOWS_APART        (MUTANT != 17) /* ... or for that of a rank that shares ranges with others */
#define TELLS_IT_OPENED    (MUTANT != 18) /* who has seen all leaves word of it, and nobody waits in vain for one that left */

/* A word of the ring: state, step, ranks that joined, ranks that are in. */
#define OPEN      1
#define COMMITTED 2
#define FAILED    3
#define WORD(state, step, joined, members) ((state) << 9 | (step) << 6 | (joined) << 3 | (members))
#define STATE(word) ((word) >> 9)
#define STEP(word) ((word) >> 6 & 7)
#define JOINED(word) ((word) >> 3 & 7)
#define MEMBERS(word) ((word) & 7)
#define NOW ring[s % RING]
#define NEXT ring[(s + 1) % RING]
#define BEFORE NEXT /* where there is no next step yet */
#define NEWEST ring[(STEP(ring[0]) > STEP(ring[1]) -> 0 : 1)]
#define ALL ((1 << N) - 1)
#define ME (1 << _pid)
#define COUNT(mask) (((mask) & 1) + ((mask) >> 1 & 1) + ((mask) >> 2 & 1))
/* A word without the lost; with too few left the step fails. */
#define WITHOUT(word, lost)                                                                                            \
  WORD((COUNT(MEMBERS(word) & ~(lost)) >= MIN -> OPEN : FAILED), STEP(word), JOINED(word) & ~(lost),                   \
       MEMBERS(word) & ~(lost))
/* Who joined a step that failed may not have been brought up to date, so he joins the next one again. */
#define FRESH (STATE(BEFORE) == FAILED && JOINS_AGAIN -> JOINED(BEFORE) : 0)

#if N == 2
#define EACH(mask, ok0, ok1, ok2) ((!((mask) & 1) || ok0) && (!((mask) & 2) || ok1))
#else
#define EACH(mask, ok0, ok1, ok2) ((!((mask) & 1) || ok0) && (!((mask) & 2) || ok1) && (!((mask) & 4) || ok2))
#endif
#define ALL_DONE(mask) EACH(mask, done[0] >= s - 1, done[1] >= s - 1, done[N - 1] >= s - 1)
#define ALL_PUBLISHED(mask) EACH(mask, published[0] >= s, published[1] >= s, published[N - 1] >= s)
#define ALL_COMPLETE(mask) EACH(mask, complete[0] >= s, complete[1] >= s, complete[N - 1] >= s)

/* The common memory. */
short ring[RING] = WORD(COMMITTED, 0, 0, ALL); /* attached; step 0 is over */
byte done[N], published[N], complete[N], slot[N];
bool want[N];
#if OPENS
bool alive[N], opened[N]; /* what the locks tell; the rank has had all before it */
bool was_open, missing;   /* not in the memory: some open has succeeded; none has, and none will: a rank stays away */
#else
bool alive[N] = true;
#endif
#if TWO_SHOT
short shared[N]; /* step, and the ranks among whom the owner shares ranges in it */
short range_word[N], range[N]; /* step and mask that the owner says, and that the element really is the mean of */
#endif
#define NO_MEAN 0

/* Not in the memory: what has happened, for the properties. */
byte decided[STEPS + 1]; /* the mask with which the first rank returned MLK_OK; 0: none has */
byte deaths, rejoins;

inline pick(mask) { /* some rank of the mask */
  if
  :: (mask) & 1 -> q = 0
  :: (mask) & 2 -> q = 1
#if N == 3
  :: (mask) & 4 -> q = 2
#endif
  fi
}

/* Members of w that the caller may give up: all others when its deadlines may be over, else the dead ones. */
#if DEADLINES
#define LOST (MEMBERS(w) & ~ME)
#else
#define LOST (MEMBERS(w) & ~ME & (!alive[0] | !alive[1] << 1 | !alive[N - 1] << (N - 1)))
#endif

/* There is somebody with this rank, but not the one who was in step s. */
#define REPLACED(rank) (want[rank] || (STEP(NEXT) > s && (~MEMBERS(NEXT) | JOINED(NEXT)) >> rank & 1))

inline give_up() { /* some rank of LOST */
  pick(LOST);
  if
  :: NOW == w || (!REMOVES_BY_SWAP && STEP(NOW) == s) -> NOW = WITHOUT(w, 1 << q)
  :: else
  fi;
  q = 0
}

inline look(knows) { /* at the decision of step s, which a rank that was left behind does not find any more */
  w = NOW;
  if
  :: STEP(w) != s || (knows && !(MEMBERS(w) & ME)) -> w = 0; goto left_out
  :: else
  fi
}

/* A process may die before anything that it does; what it knew goes with it. */
#define MAY_DIE :: atomic { deaths < DEATHS -> deaths++; alive[_pid] = false; goto gone }

active [N] proctype rank() {
  byte s = 1;          /* the step */
  short w;             /* the decision as last seen */
  byte over;           /* the held mean: over which ranks */
  bool good;           /* ... and their gradients of this step */
  bool stale;          /* the parameters are not those of the group: nobody has brought them up to date */
  byte q;

#if OPENS
open: /* whoever closes the group is gone for the others like one who dies */
  alive[_pid] = true;
  do
  :: atomic { (alive[0] && alive[1] && alive[N - 1]) || opened[0] || opened[1] || opened[N - 1] ->
       was_open = true; opened[_pid] = TELLS_IT_OPENED; break
     }
  :: atomic { missing -> alive[_pid] = false; goto stopped } /* the deadline; property: after was_open nobody needs it */
  MAY_DIE
  od;
#endif

begin:
  do
  :: atomic { STEP(NOW) < s -> /* proposes, unless somebody has */
       w = ME | (FRESH & ME) << 3;
       q = 0;
       do
       :: q < N && q != _pid && (MEMBERS(BEFORE) >> q & 1) && !(FRESH >> q & 1) -> w = w | 1 << q; q++
       :: q < N && q != _pid && (want[q] || (FRESH >> q & 1)) -> w = w | 9 << q; q++
#if DEADLINES
       :: q < N && q != _pid -> q++
#else
       :: q < N && q != _pid && !(MEMBERS(BEFORE) >> q & 1 && alive[q]) -> q++
#endif
       :: q < N && q == _pid -> q++
       :: q == N -> break
       od;
       q = 0;
       if
       :: COUNT(MEMBERS(w)) >= MIN -> NOW = WORD(OPEN, s, JOINED(w), MEMBERS(w)); w = 0
#if DEADLINES
       :: COUNT(MEMBERS(w)) < MIN -> NOW = WORD(FAILED, s, JOINED(w), MEMBERS(w)); w = 0
#endif
       :: COUNT(MEMBERS(w)) < MIN -> w = 0; goto too_few
       fi
     }
  :: atomic { STEP(NOW) >= s -> look(true) } break
  MAY_DIE
  od;

wait_done:
  do
  :: atomic { STATE(w) == OPEN && (ALL_DONE(MEMBERS(w) & ~JOINED(w)) || !WAITS_FOR_DONE) ->
       /* property: whoever takes part has the group's parameters; who joined gets them (mlk_group_sync) */
       if
       :: (JOINED(w) & ME) && (MEMBERS(w) & ~JOINED(w)) -> stale = false
       :: (JOINED(w) & ME) && !(MEMBERS(w) & ~JOINED(w)) && JOINER_NEEDS_GIVER -> goto left_out
       :: else
       fi;
       assert(!stale);
       break
     }
  :: atomic { STATE(w) == OPEN && LOST -> give_up(); look(true) }
  :: atomic { NOW != w -> look(true) }
  :: atomic { STATE(w) == FAILED -> goto failed }
  MAY_DIE
  od;

  /* publish */
  if
  :: atomic {
       if
       :: DATA_FIRST -> assert(slot[_pid] < s); slot[_pid] = s /* property: nobody writes twice in a step */
       :: else -> published[_pid] = s
       fi
     }
  MAY_DIE
  fi;
  if
  :: atomic {
       if
       :: DATA_FIRST -> published[_pid] = s
       :: else -> slot[_pid] = s
       fi
     }
  MAY_DIE
  fi;
  if
  :: complete[_pid] = s /* with this bucket, all are */
  MAY_DIE
  fi;

  /* average: provisional, and not necessarily called for every bucket before finish */
  if
  :: atomic { look(true) }
  :: !TWO_SHOT -> goto finish
  fi;
  do
  :: atomic { STATE(w) != FAILED && ALL_PUBLISHED(MEMBERS(w)) -> break }
  :: atomic { STATE(w) == OPEN && LOST -> give_up(); look(true) }
  :: atomic { NOW != w -> look(true) }
  :: atomic { STATE(w) == FAILED -> goto failed }
  MAY_DIE
  od;
#if TWO_SHOT
  if
  :: atomic { over = MEMBERS(w); shared[_pid] = WORD(0, s, 0, over) }
  MAY_DIE
  fi;
  /* the element is in the own range or in that of another rank */
  if
  :: atomic { pick(over); good = slot[q] == s; q = 0 }
  MAY_DIE
  fi;
  if
  :: atomic { RANGE_BEFORE_WORDS -> range_word[_pid] = 0; range[_pid] = (good -> WORD(0, s, 0, over) : NO_MEAN) }
  :: atomic { !RANGE_BEFORE_WORDS -> range_word[_pid] = WORD(0, s, 0, over) }
  MAY_DIE
  fi;
  if
  :: atomic { RANGE_BEFORE_WORDS -> range_word[_pid] = WORD(0, s, 0, over) }
  :: atomic { !RANGE_BEFORE_WORDS -> range[_pid] = (good -> WORD(0, s, 0, over) : NO_MEAN) }
  MAY_DIE
  fi;
  if
  :: skip /* the own range */
  :: atomic { (over & ~ME) -> pick(over & ~ME) };
     if
     :: (range_word[q] == WORD(0, s, 0, over) || (!MARKS_RANGE && STEP(range_word[q]) == s)) ->
        atomic { good = range[q] == WORD(0, s, 0, over); q = 0 }
#if DEADLINES
     :: atomic { q = 0; pick(over); good = slot[q] == s; q = 0 } /* dead or late: averaged here */
#else
     :: atomic { !alive[q] || STEP(NOW) != s || MEMBERS(NOW) != over || (KNOWS_REPLACED && REPLACED(q)) ||
                 (KNOWS_APART && STEP(shared[q]) == s && MEMBERS(shared[q]) != over) ->
          q = 0; pick(over); good = slot[q] == s; q = 0
        }
#endif
     MAY_DIE
     fi
  fi;
#else
  over = MEMBERS(w);
  if
  :: atomic { pick(over); good = slot[q] == s; q = 0 }
  MAY_DIE
  fi;
#endif

finish: /* decide */
  atomic { look(KNOWS_ITS_PLACE) };
  do
  :: atomic { STATE(w) == COMMITTED -> break }
  :: atomic { STATE(w) == OPEN && (ALL_COMPLETE(MEMBERS(w)) || !COMMITS_COMPLETE) ->
       if
       :: NOW == w || (!COMMITS_BY_SWAP && STEP(NOW) == s) ->
          NOW = WORD(COMMITTED, s, JOINED(w), MEMBERS(w))
       :: else
       fi;
       look(KNOWS_ITS_PLACE)
     }
  :: atomic { STATE(w) == OPEN && LOST -> give_up(); look(KNOWS_ITS_PLACE) }
  :: atomic { NOW != w -> look(KNOWS_ITS_PLACE) }
  :: atomic { STATE(w) == FAILED -> goto failed }
  MAY_DIE
  od;
  if
  :: !LOOKS_LATE -> atomic {
       if
       :: STEP(NEXT) > s && !(MEMBERS(NEXT) & ME) -> goto left_out
       :: else
       fi
     }
  :: LOOKS_LATE
  fi;
  if
  :: atomic { MEMBERS(w) != over && AVERAGES_AGAIN -> over = MEMBERS(w); pick(over); good = slot[q] == s; q = 0 }
  :: MEMBERS(w) == over || !AVERAGES_AGAIN
  MAY_DIE
  fi;
  if
  :: done[_pid] = s
  MAY_DIE
  fi;
  atomic {
    if
    :: LOOKS_AFTERWARDS && LOOKS_LATE && STEP(NEXT) > s && !(MEMBERS(NEXT) & ME) ->
       goto left_out
    :: else
    fi;
    /* MLK_OK. Properties: the mean is that of this step's gradients of exactly the decided ranks; the decision is the
       same for all; whoever is not in it does not get here */
    assert(over == MEMBERS(w));
    assert(good);
    assert(MEMBERS(w) & ME);
    assert(COUNT(MEMBERS(w)) >= MIN);
    assert(decided[s] == 0 || decided[s] == MEMBERS(w));
    decided[s] = MEMBERS(w);
#if !DEADLINES && !DEATHS
    assert(MEMBERS(w) == ALL) /* property: nobody is lost without a reason */
#endif
  };
next_step:
  atomic {
    w = 0;
    over = 0;
    good = false;
    s++;
    if
    :: s <= STEPS -> goto begin
    :: else -> alive[_pid] = false; goto gone
    fi
  };

failed:
  atomic { assert(decided[s] == 0); done[_pid] = s; goto next_step } /* property: a failed step counts for nobody */

too_few: /* waits for replacements */
end_few:
  if
  :: atomic { STEP(NOW) >= s || want[0] || want[1] || want[N - 1] -> goto begin }
  MAY_DIE
  fi;

left_out:
gone: /* of a process that is dead or was left out nothing remains: another one may come with its rank */
  atomic {
    s = 0; w = 0; over = 0; good = false; q = 0;
    stale = true;
    if
    :: rejoins < REJOINS -> rejoins++
#if OPENS
    :: alive[_pid] = false; missing = !was_open; goto stopped /* nobody comes in its place */
    fi;
    if
    :: !was_open -> s = 1; stale = false; goto open
    :: else
    fi
#else
    :: alive[_pid] = false; goto stopped
    fi
#endif
  };

join: /* out of the step that is under way, if its predecessor was in it */
  atomic {
    alive[_pid] = true;
    s = STEP(NEWEST);
    w = NEWEST;
    if
    :: LEAVES_OLD_STEP && STATE(w) == OPEN && (MEMBERS(w) & ME) ->
       NOW = WITHOUT(w, ME)
    :: else
    fi;
    w = 0; s = 0
  };
  if
  :: want[_pid] = true
  MAY_DIE
  fi;
end_join: /* all others may be gone; the deadline ends this wait */
  do
  :: atomic { STATE(NEWEST) == OPEN && (MEMBERS(NEWEST) & ME) ->
       w = NEWEST;
       s = STEP(w);
       if
       :: (JOINED(w) & ME) || !JOINS_AS_NEW -> want[_pid] = false; done[_pid] = s - 1; goto wait_done
       :: else -> NOW = WITHOUT(w, ME)
       fi;
       s = 0; w = 0
     }
#if DEADLINES
  :: atomic { want[_pid] = false; alive[_pid] = false; goto stopped }
#endif
  MAY_DIE
  od;

stopped:
  skip
}
