"""CloserLookFewShot's ``set_forward_adaptation`` in plain steps: one episode, one step after another.

After wyharveychen/CloserLookFewShot@e03aca8, methods/baselinefinetune.py, with the start of the
classifier and the orders of the epochs given.
"""

import torch
from torch import nn


def literal_episode(support, query, way, weight, bias, orders, lr, *, batch=4, weight_decay=0.001):
    """Scores of the queries.

    Args:
        support: features of the images to train on (way, shot, D).
        query: of those to classify (way, queries, D).
        way: classes.
        weight: the classifier's start (way, D).
        bias: (way,).
        orders: of the support images in each epoch, class-major (epochs, way * shot).
        lr: learning rate.
        batch: images of a step.
        weight_decay: of weight and bias.
    """
    shot = support.shape[1]
    support = support.reshape(way * shot, -1)
    query = query.reshape(-1, support.shape[1])
    y_support = torch.tensor([c for c in range(way) for _ in range(shot)])
    linear_clf = nn.Linear(support.shape[1], way).to(support.dtype)
    with torch.no_grad():
        linear_clf.weight.copy_(weight)
        linear_clf.bias.copy_(bias)
    set_optimizer = torch.optim.SGD(
        linear_clf.parameters(), lr=lr, momentum=0.9, dampening=0.9, weight_decay=weight_decay
    )
    loss_function = nn.CrossEntropyLoss()
    for rand_id in orders:
        for i in range(0, way * shot, batch):
            set_optimizer.zero_grad()
            selected_id = rand_id[i : min(i + batch, way * shot)]
            scores = linear_clf(support[selected_id])
            loss = loss_function(scores, y_support[selected_id])
            loss.backward()
            set_optimizer.step()
    with torch.no_grad():
        return linear_clf(query)


def literal_accuracy(scores, way):
    """Percent right of an episode, as upstream's ``test.py`` counts them."""
    correct, queries = 0, len(scores) // way
    for row, score in enumerate(scores.tolist()):
        correct += score.index(max(score)) == row // queries
    return correct / len(scores) * 100


def hard_features(classes=20, per_class=40, features=64, separation=0.45, seed=0):
    """Features as after a ReLU, of classes that overlap, and their labels: an accuracy near 45 %."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat_interleave(per_class)
    centres = separation * torch.randn(classes, features, generator=generator)
    noise = torch.randn(len(labels), features, generator=generator)
    return (centres[labels] + noise).relu(), labels
