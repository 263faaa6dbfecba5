// Pictures that are drawn at the same time, each on a thread of its own but the first one, which stays on the caller's.
// The threads pass a baton: only the one that has it runs, until it waits for a pass, needs the caller's thread, or
// ends.
#pragma once

#include <condition_variable>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "sdcpp/lanes/meeting.h"
#include "sdcpp/placement/placement.h"

namespace sdcpp {

class Pictures {
public:
    // Of pictures from `first` on, before `end`.
    Pictures(int first, int end, const std::function<bool(int)>& draw);
    // Gives up those that have not ended.
    ~Pictures();
    Pictures(const Pictures&) = delete;
    Pictures& operator=(const Pictures&) = delete;

    // Draws the first one, and those that are started meanwhile; false when one failed.
    bool run();
    // Returns the number of the first picture that is not started.
    int next() const { return next_; }

    // Returns how many the first picture's pass may start: those that are left, before any is started.
    size_t pending() const;
    // Starts so many more, or those that are left, each of which runs up to its first pass.
    void start(size_t more);
    // Lets the others run up to their passes, or, of one of these, waits until its own is done or it has to lead.
    void gather(Lane& lane);
    // Returns the other lanes, those behind a lane first.
    std::vector<const Lane*> others(const Lane& lane) const;
    // Runs a function on the caller's thread, for one of the others.
    void ask_caller(Lane& lane, const std::function<void()>& function);

private:
    struct Drawn : Lane {
        int number = 0;
        std::thread thread;
        Sampling sampling;  // of the run while this one has the baton
        const std::function<void()>* request = nullptr;
        std::exception_ptr request_error;
        std::exception_ptr error;
        bool drawn = false;
        bool ended = false;
    };

    void main(Drawn& picture);
    void resume(Drawn& picture);
    void resume_all();
    void finish(Drawn& picture);
    void wait_for_baton(Drawn& picture);
    void give_back();
    bool all_drawn() const;

    const std::function<bool(int)>& draw_;
    const int end_;
    int next_;
    Lane& caller_;
    std::shared_ptr<Placements> placements_;
    sdcpp_run* const run_;
    const bool fills_;
    std::vector<std::unique_ptr<Drawn>> started_;
    bool given_up_ = false;

    std::mutex mutex_;
    std::condition_variable passed_;
    const Drawn* holder_ = nullptr;  // who has the baton; NULL: the caller
};

}  // namespace sdcpp
