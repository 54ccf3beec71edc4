from anykd.experiment.history import History


class TestHistory:
    def test_reports_the_last_epoch_and_the_best_beside_it(self):
        history = History()
        found = [history.add({"top1": top1}, epoch) for epoch, top1 in enumerate((40, 60, 50), 1)]
        assert found == [True, True, False]
        assert history.scores == {"top1": 50}
        assert (history.best, history.best_epoch) == (60, 2)

    def test_of_equal_epochs_the_first_is_the_best(self):
        history = History()
        assert history.add({"top1": 0.0}, 1)
        assert not history.add({"top1": 0.0}, 2)
        assert history.best_epoch == 1

    def test_comes_back_from_plain_values(self):
        history = History(teachers=[{"top1": 90.0}], seconds=3.5)
        history.add({"top1": 60.0, "fusion_top1": 70.0}, 1)
        assert History(**history.state_dict()) == history
