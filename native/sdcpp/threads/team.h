/* The threads that compute a graph together on the CPU: they wait for one another without burning the processor for
   long, and when one of them throws (a failed engine check, say) all of them leave the graph, and the thread that called
   says why. So do they when the graph is wanted no more, which the thread that called asks within operations, too. Part
   of ggml-base, and called by the CPU backend in each of its variants, hence plain C. */
#pragma once

#include <stdbool.h>

#include "ggml.h"

#ifdef __cplusplus
extern "C" {
#endif

struct ggml_compute_params;
struct sdcpp_team;

/* Computes one node of a graph. */
typedef void (*sdcpp_team_node_t)(struct ggml_compute_params * params, struct ggml_tensor * node);

/* Makes the team of a thread pool. */
GGML_API struct sdcpp_team * sdcpp_team_new(void);
/* Frees a team that has no graph. */
GGML_API void sdcpp_team_free(struct sdcpp_team * team);
/* Begins a graph, which works for what the calling thread works for, before the other threads enter it. */
GGML_API void sdcpp_team_begin(struct sdcpp_team * team, int threads);
/* Makes a thread one of the team. */
GGML_API void sdcpp_team_enter(struct sdcpp_team * team);
/* Lets a thread leave; the one that called waits for the others. */
GGML_API void sdcpp_team_leave(struct sdcpp_team * team, bool caller);
/* Computes a node on this thread; false when a thread of the team has failed: the graph is over. */
GGML_API bool sdcpp_team_compute(struct sdcpp_team * team, sdcpp_team_node_t compute, struct ggml_compute_params * params,
                                 struct ggml_tensor * node);
/* Gives out the pieces of the node that this thread computes: returns 0, 1, 2 and so on, each to one thread, and -1 when
   none is left of so many, or the node is computed. A node whose pieces are taken is computed when each was finished,
   whoever came; of any other every thread computes its own part. */
GGML_API int64_t sdcpp_team_take(int64_t count);
/* Says that a piece that was taken is computed. */
GGML_API void sdcpp_team_finish(int64_t count);
/* Waits until the node is computed; false when a thread of the team has failed. */
GGML_API bool sdcpp_team_meet(struct sdcpp_team * team);
/* Waits for the others inside a node; unwinds it when a thread of the team has failed. */
GGML_API void sdcpp_team_meet_inside(struct sdcpp_team * team);
/* Returns how the graph ended that ended so between its nodes. */
GGML_API enum ggml_status sdcpp_team_status(const struct sdcpp_team * team, enum ggml_status status);

/* Tells whether what a thread works for is wanted no more. */
typedef bool (*sdcpp_team_unwanted_t)(void * work);
/* Sets who is asked that, often and on the thread that called; returns who was before. */
GGML_API sdcpp_team_unwanted_t sdcpp_team_ask(sdcpp_team_unwanted_t unwanted);
/* Called every few milliseconds of a long node by each thread: unwinds it when the graph is over. */
GGML_API void sdcpp_team_look(void);

/* Unwinds this thread to its team with a message; returns when it is in no node of a team. */
GGML_API void sdcpp_team_fail(const char * message);
/* Returns the team a node of which this thread computes, or NULL. */
GGML_API struct sdcpp_team * sdcpp_team_inside(void);
/* Returns why the last graph that this thread called for failed, or ""; it says so once. */
GGML_API const char * sdcpp_team_failure(void);

/* What this thread works for; the threads of a team work for what their caller works for. */
GGML_API void * sdcpp_thread_work(void);
GGML_API void sdcpp_thread_work_set(void * work);

#ifdef __cplusplus
}
#endif
